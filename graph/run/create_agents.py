"""From a recipe's entries to agents, none of them open; a graph in an agent's place with all that is in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cachegraph.agents.base import Agent
from cachegraph.agents.create import Create, create_agent
from cachegraph.agents.functions.agent import FunctionAgent
from cachegraph.agents.functions.import_function import Function
from cachegraph.agents.spec import FunctionSpec, PauseSpec, SubgraphSpec
from cachegraph.agents.tools.servers import Toolbox

from ..recipe.includes import own_file
from ..recipe.load import read_spec
from ..recipe.spec import GraphSpec
from .subgraph import SubgraphAgent

__all__ = ["create_agents"]


def create_agents(
    spec: GraphSpec,
    folder: Path,
    create: Create,
    functions: Mapping[str, Function] | None = None,
    allow_local: bool = True,
    allow_paths: bool = True,
) -> dict[str, Agent]:
    """The agents of a checked recipe, none of them open. `functions`: by agent, those that are not to be imported.

    `allow_local`: endpoints and tool servers may be in this machine's networks, whatever their names are.
    `allow_paths`: models may be outside the recipe's folder.
    """
    toolbox = Toolbox(spec.tools, folder, allow_local)
    upstream: dict[str, list[str]] = {name: [] for name in spec.agents}
    for edge in spec.edges:
        upstream[edge.receiver].append(edge.sender)
    agents: dict[str, Agent] = {}
    for name, entry in spec.agents.items():
        if isinstance(entry, PauseSpec):
            from cachegraph.agents.pause import PauseAgent

            agents[name] = PauseAgent(name, entry, upstream=tuple(upstream[name]))
            continue
        if isinstance(entry, SubgraphSpec):
            agents[name] = _subgraph(name, entry, folder, create, allow_local, allow_paths)
            continue
        inputs = (*spec.inputs, entry.item) if entry.for_each is not None else tuple(spec.inputs)
        if isinstance(entry, FunctionSpec):
            given = (functions or {}).get(name)
            agents[name] = FunctionAgent(
                name, entry.function, given, folder, inputs=inputs, upstream=tuple(upstream[name])
            )
            continue
        model = spec.models.get(entry.model, entry.model)
        # So that other makers of agents need not know of it:
        more: dict[str, Any] = {"toolbox": toolbox} if entry.tools else {}
        if create is create_agent:
            more |= {"allow_local": allow_local, "allow_paths": allow_paths}
        agents[name] = create(name, entry, model, folder, inputs=inputs, upstream=tuple(upstream[name]), **more)
    return agents


def _subgraph(
    name: str, entry: SubgraphSpec, folder: Path, create: Create, allow_local: bool, allow_paths: bool
) -> SubgraphAgent:
    file = own_file(entry, folder)
    inner = read_spec(file)
    agents = create_agents(inner, file.parent, create, allow_local=allow_local, allow_paths=allow_paths)
    return SubgraphAgent(name, entry, inner, file.parent, agents)
