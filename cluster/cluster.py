"""Cluster: replicas of models on Ray, shared by all graphs that run there."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from cachegraph.agents.base import Agent
from cachegraph.agents.create import Create, ModelLink, create_agent
from cachegraph.agents.spec import AgentSpec, EndpointSpec
from cachegraph.agents.tools.agent_tools import AgentTools
from cachegraph.agents.tools.servers import Toolbox
from cachegraph.engine.spec import ModelSpec
from cachegraph.graph.recipe.spec import GraphSpec

from .head import Head
from .messages import AgentSetup
from .nodes import node_ids, node_resources, store_bytes
from .placement import CacheTraffic, place
from .plan import ClusterPlan, estimated_memory, need_of, plan_cluster
from .remote_agent import RemoteAgent
from .replica_set import ReplicaSet
from .store_budget import StoreBudget

__all__ = ["Cluster"]


class Cluster:
    """A connection to Ray. Models are loaded in replicas when a graph is opened, and end with the last one.

    Agents behind endpoints, functions and people stay in this process. `own`: whether `close` ends the connection.
    """

    def __init__(self, address: str, head: Head, own: bool):
        self.address = address
        self._head = head
        self._own = own
        self.sets: dict[str, ReplicaSet] = {}
        self._budget = StoreBudget(store_bytes)
        self._links: set[tuple[str, str]] = set()  # keys of models between which caches travel

    def creator(
        self, *, allow_local: bool = True, allow_paths: bool = True, links: Collection[ModelLink] = ()
    ) -> Create:
        """A factory for agents that take their turns here; see `ModelHost`."""
        for link in links:
            ends = (self._replicas(_spec(end), link.folder, allow_paths).key for end in (link.sender, link.receiver))
            self._links.add((next(ends), next(ends)))
        return partial(self._create, allow_local=allow_local, allow_paths=allow_paths)

    def _create(
        self,
        name: str,
        spec: AgentSpec,
        model: str | ModelSpec | EndpointSpec,
        folder: Path,
        *,
        inputs: Sequence[str],
        upstream: Sequence[str],
        toolbox: Toolbox | None = None,
        allow_local: bool,
        allow_paths: bool,
    ) -> Agent:
        if isinstance(model, EndpointSpec):
            return create_agent(
                name, spec, model, folder, inputs=inputs, upstream=upstream, toolbox=toolbox, allow_local=allow_local
            )
        tools = AgentTools(name, spec.tools, spec.tool_limits, toolbox) if spec.tools and toolbox else None
        setup = AgentSetup(uuid4().hex, name, spec, tuple(inputs), tuple(upstream))
        return RemoteAgent(setup, self._replicas(_spec(model), folder, allow_paths), self.sets, self._budget, tools)

    def _replicas(self, model: ModelSpec, folder: Path, allow_paths: bool) -> ReplicaSet:
        """The replicas of a model; graphs in several folders share those of a model that lies in neither."""
        named = model.chat_template is not None or (folder / model.source).exists()
        local = named and not (allow_paths and model.chat_template is None and Path(model.source).is_absolute())
        base = folder.absolute()
        key = f"{model.without_placement().model_dump_json()} {base if local else ''} {allow_paths}"
        if key not in self.sets:
            has_gpus = any(node.gpus for node in node_resources())
            need = need_of(model, estimated_memory(model, base), has_gpus)
            self.sets[key] = ReplicaSet(key, model, base, allow_paths, need, self._node_for)
        self.sets[key].widen(model.replicas)
        return self.sets[key]

    def _node_for(self, key: str, number: int) -> str | None:
        """The id of the node on which the plan places this replica, counted from 0; None beyond the planned ones.

        Raises ConfigError with the arithmetic if the models don't fit the cluster.
        """
        used = {other: replicas for other, replicas in self.sets.items() if replicas.is_used or other == key}
        names = _names(used)
        needs = {names[other]: replicas.need for other, replicas in used.items()}
        counts = {names[other]: replicas.limits.min for other, replicas in used.items()}
        links = sorted(link for link in self._links if set(link) <= names.keys())
        traffic = [CacheTraffic(names[sender], names[receiver], 1) for sender, receiver in links]
        nodes = place(needs, traffic, node_resources(), counts).nodes[names[key]]
        return node_ids().get(nodes[number]) if number < len(nodes) else None

    @property
    def why_lost(self) -> str | None:
        """Why the connection is lost for good; None while it is not."""
        return self._head.why_lost

    def plan(self, spec: GraphSpec, folder: Path) -> ClusterPlan:
        """What would go where; loads nothing. Raises ConfigError with the arithmetic if the models don't fit."""
        return plan_cluster(spec, folder, node_resources())

    def close(self) -> None:
        """End all replicas, and the connection if this is the one that made it."""
        for replicas in self.sets.values():
            replicas.close()
        self.sets.clear()
        if self._own:
            self._head.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _names(sets: Mapping[str, ReplicaSet]) -> dict[str, str]:
    """What errors call the models, by key: their sources, numbered where several sets have the same."""
    names: dict[str, str] = {}
    for key, replicas in sets.items():
        same = sum(sets[other].model.source == replicas.model.source for other in names)
        names[key] = f"{replicas.model.source} ({same + 1})" if same else replicas.model.source
    return names


def _spec(model: str | ModelSpec) -> ModelSpec:
    return ModelSpec(source=model) if isinstance(model, str) else model
