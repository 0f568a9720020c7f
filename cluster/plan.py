"""What would go where: the placement of a recipe's models, and the bytes of its cache edges. Loads nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cachegraph.agents.spec import EndpointSpec
from cachegraph.common.human import format_bytes
from cachegraph.engine.catalogue import find
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import CachegraphError
from cachegraph.graph.plan.expected_routes import expected_routes, read_included
from cachegraph.graph.recipe.spec import GraphSpec

from .placement import CacheTraffic, Need, NodeResources, ReplicaPlacement, place

__all__ = ["ClusterPlan", "PlannedEdge", "plan_cluster"]

TOKENS = 512  # that a cache edge is taken to carry, to weigh edges against each other


@dataclass(frozen=True)
class PlannedEdge:
    """An edge that may carry a cache. `bytes` are of one token; None if the model is not on this disk."""

    sender: str
    receiver: str
    form: str
    models: tuple[str, str]
    bytes: int | None


@dataclass(frozen=True)
class ClusterPlan:
    """A recipe on the nodes of a cluster. Models go by their names in the recipe."""

    needs: Mapping[str, Need]
    replicas: Mapping[str, int]
    edges: Sequence[PlannedEdge]
    nodes: Sequence[NodeResources]
    placement: ReplicaPlacement
    unknown: Sequence[str]  # models whose size is not known, since they are not on this disk

    def lines(self) -> list[str]:
        """The plan as text, a line for each model, edge and node."""
        return [
            *map(self._model, self.needs),
            *(f"edge {edge.sender} -> {edge.receiver}: {self._edge(edge)}" for edge in self.edges),
            *map(self._node, self.nodes),
            *(
                f"note: {model!r} is not on this disk, so its size is unknown; give its `memory`"
                for model in self.unknown
            ),
        ]

    def _model(self, model: str) -> str:
        need, count = self.needs[model], self.replicas[model]
        takes = [f"about {format_bytes(need.memory)}" if need.memory else "memory unknown"]
        takes += [f"{need.gpus:g} GPU"] * bool(need.gpus)
        takes += [f"{most:g} {name}" for name, most in need.resources.items()]
        where = ", ".join(self.placement.nodes[model])
        return f"model {model}: {count} replica{'s' * (count > 1)}, {', '.join(takes)} each; on {where}"

    def _node(self, node: NodeResources) -> str:
        models = self.placement.on(node.name)
        used = sum(self.needs[model].memory for model in models)
        gpus = sum(self.needs[model].gpus for model in models)
        of_gpus = f", {gpus:g} of {node.gpus:g} GPUs" if node.gpus else ""
        share = f"{format_bytes(used)} of {format_bytes(node.memory)}{of_gpus}"
        return f"node {node.name}: {', '.join(models) or 'nothing'}; {share}"

    def _edge(self, edge: PlannedEdge) -> str:
        if edge.form == "text":
            return "text"
        size = "an unknown number of bytes" if edge.bytes is None else f"about {format_bytes(edge.bytes)}"
        senders, receivers = (self.placement.nodes[model] for model in edge.models)
        shared = set(senders) & set(receivers)
        apart = set(senders) != set(receivers)
        where = "between nodes" if not shared else "within and between nodes" if apart else "within a node"
        return f"{edge.form}, {size} a token, {where}"


def plan_cluster(spec: GraphSpec, folder: Path, nodes: Sequence[NodeResources]) -> ClusterPlan:
    """Place the models of a checked recipe in `folder` on nodes. Raises ConfigError with the arithmetic if none fits.

    Edges of included recipes are not weighed.
    """
    models = _models(spec)
    estimates = {name: _estimate(model, folder) for name, model in models.items()}
    has_gpus = any(node.gpus for node in nodes)
    needs = {name: need_of(model, estimates[name][0], has_gpus) for name, model in models.items()}
    counts = {name: model.replicas.min for name, model in models.items()}
    edges = _edges(spec, folder, models, {name: token for name, (_, token) in estimates.items()})
    traffic = [CacheTraffic(*edge.models, (edge.bytes or 1) * TOKENS) for edge in edges if edge.form != "text"]
    placement = place(needs, traffic, nodes, counts)
    unknown = [name for name in models if not needs[name].memory]
    return ClusterPlan(needs, counts, edges, nodes, placement, unknown)


def need_of(model: ModelSpec, estimated: int, has_gpus: bool) -> Need:
    """What one replica takes: what the recipe says, or the estimate, and a GPU where there are any."""
    gpus = model.gpus
    if gpus is None:
        gpus = 1.0 if has_gpus and model.device != "cpu" else 0.0
    return Need(int(model.memory or estimated), gpus, model.resources or {})


def estimated_memory(model: ModelSpec, folder: Path) -> int:
    """Bytes of one replica; 0 if the model is not on this disk."""
    return _estimate(model, folder)[0]


def _estimate(model: ModelSpec, folder: Path) -> tuple[int, int | None]:
    """Bytes of one replica, and of one token's cache."""
    from cachegraph.engine.model.estimate import estimate_model

    try:
        stored = find(model, folder)
        if stored is None:
            return 0, None
        estimate = estimate_model(stored.folder, model)
    except CachegraphError:  # it may be on the nodes alone; loading it there says what is wrong
        return 0, None
    return estimate.memory, estimate.token_bytes


def _models(spec: GraphSpec) -> dict[str, ModelSpec]:
    """The models that run on the cluster, by the names that agents use."""
    found: dict[str, ModelSpec] = {}
    for entry in spec.speakers.values():
        model = spec.models.get(entry.model, entry.model)
        if not isinstance(model, EndpointSpec):
            found[entry.model] = ModelSpec(source=model) if isinstance(model, str) else model
    return found


def _edges(
    spec: GraphSpec, folder: Path, models: Mapping[str, ModelSpec], tokens: Mapping[str, int | None]
) -> list[PlannedEdge]:
    routes = expected_routes(spec, folder, lambda entry: read_included(entry, folder))
    edges = []
    for (sender, receiver), route in routes.items():
        ends = [spec.speakers[name].model for name in (sender, receiver) if name in spec.speakers]
        if len(ends) < 2 or not all(end in models for end in ends):
            edges.append(PlannedEdge(sender, receiver, "text", ("", ""), 0))
            continue
        edges.append(PlannedEdge(sender, receiver, route.used, (ends[0], ends[1]), tokens[ends[0]]))
    return edges
