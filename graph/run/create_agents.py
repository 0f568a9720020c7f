"""Create the agents of a recipe, also inside the recipes that it includes."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from cachegraph.agents.base import Agent
from cachegraph.agents.create import Create, create_in_context
from cachegraph.agents.entry import AgentContext
from cachegraph.agents.functions.import_function import Function
from cachegraph.agents.subgraph import SubgraphSpec
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
    """Create the agents of a checked recipe in `folder`. `functions`: by agent, functions that the caller registered.

    `create` creates the agents that have a model. `allow_local`: endpoints and tool servers may be in this machine's
    networks, whatever their names are. `allow_paths`: models may be outside the recipe's folder.
    """
    create_model_agent = partial(create_in_context, create, allow_local=allow_local, allow_paths=allow_paths)

    def include(name: str, entry: SubgraphSpec) -> Agent:
        file = own_file(entry, folder)
        inner = read_spec(file)
        agents = create_agents(inner, file.parent, create, allow_local=allow_local, allow_paths=allow_paths)
        return SubgraphAgent(name, entry, inner, file.parent, agents)

    toolbox = Toolbox(spec.tools, folder, allow_local)
    upstream: dict[str, list[str]] = {name: [] for name in spec.agents}
    for edge in spec.edges:
        upstream[edge.receiver].append(edge.sender)
    agents: dict[str, Agent] = {}
    for name, entry in spec.agents.items():
        context = AgentContext(
            name,
            folder,
            inputs=(*spec.inputs, entry.item) if entry.for_each is not None else tuple(spec.inputs),
            upstream=tuple(upstream[name]),
            models=spec.models,
            toolbox=toolbox,
            create=create_model_agent,
            include=include,
            function=(functions or {}).get(name),
        )
        agents[name] = entry.create(context)
    return agents
