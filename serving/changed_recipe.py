"""A changed recipe: one of this server's recipes as a client edited it.

It may change inputs, prompts, settings and edges, and add agents. It has the models and fusers that the served recipe
uses, and no others. It runs no code, includes no file, calls no tool, and reaches no address of its own.
"""

from collections.abc import Iterator

from cachegraph.agents.spec import AgentSpec
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.load import parse_alone
from cachegraph.graph.recipe.raw_spec import Finding, Permissions, RawSpec
from cachegraph.graph.recipe.safety import fuser_names
from cachegraph.graph.recipe.spec import GraphSpec

from .config import ServerLimits
from .recipe_source import RecipeSource, fusers_of

__all__ = ["changed_graph", "changed_spec"]

MOST_AGENTS = 64
MOST_ROUNDS = 100
ALONE = "a changed recipe runs no code, includes no file and calls no tool"


def changed_graph(text: str, source: RecipeSource, limits: ServerLimits) -> Graph:
    """Return the graph of a changed recipe, on the models of its base; close it after its runs. Raises RecipeError."""
    return source.graph.with_spec(changed_spec(text, source, limits)).validate()


def changed_spec(text: str, source: RecipeSource, limits: ServerLimits) -> GraphSpec:
    """Check a changed recipe and return it with the models of its base. Reads no file. Raises RecipeError."""
    base = source.graph.spec
    names = {agent.model for agent in base.speakers.values()} - base.models.keys()
    # `_border` refuses all code and addresses; the usual checks of them would look hosts up.
    allowed = Permissions(
        allow_env=source.graph.permissions.allow_env,
        known_models=frozenset(map(source.short, [*names, *_local(base)])),
        allow_code=True,
        allow_local=True,
    )
    spec = parse_alone(text, allowed, lambda spec: _border(spec, source, limits))
    return source.restore(spec).model_copy(update={"evaluate": None})  # no matter of a run


def _local(spec: GraphSpec) -> Iterator[str]:
    for entry in spec.models.values():
        yield entry if isinstance(entry, str) else getattr(entry, "source", "")


def _border(spec: GraphSpec, source: RecipeSource, limits: ServerLimits) -> Iterator[Finding]:
    """Find what a changed recipe may not do."""
    base = source.graph.spec
    if spec.name != base.name:
        yield Finding(f"a changed recipe keeps its name, {base.name!r}", ("name",))
    if spec.tools:
        yield Finding(ALONE, ("tools",), "remove it", at_key=True)
    if len(spec.agents) > MOST_AGENTS:
        yield Finding(f"the recipe has {len(spec.agents)} agents, and this server takes {MOST_AGENTS}", ("agents",))
    for key, entry in spec.models.items():
        if not source.same_model(key, entry):
            message = f"model {key!r} is not one that the served recipe has under this name"
            yield Finding(message, ("models", key), "leave `models` as it is", at_key=True)
    yield from _repeats(spec, base)
    used = {model for agent in base.speakers.values() for model in (agent.model, source.short(agent.model))}
    for name, agent in spec.agents.items():
        if isinstance(agent, AgentSpec):
            yield from _agent(name, agent, used, limits)
        elif not agent.pauses:
            yield Finding(f"agent {name!r} can't run here: {ALONE}", ("agents", name), at_key=True)
    known = {name for fuser in fusers_of(base) for name in (fuser, source.short(fuser))}
    for path, fuser in fuser_names(RawSpec.of(spec.model_dump(by_alias=True, exclude_defaults=True))):
        if fuser not in known:
            yield Finding(f"fuser {fuser!r} is not one that the served recipe names", path, "remove it")


def _repeats(spec: GraphSpec, base: GraphSpec) -> Iterator[Finding]:
    """Find loops and lists by which a few lines could keep the server busy."""
    for index, edge in enumerate(spec.edges):
        if (edge.max_rounds or 0) > MOST_ROUNDS:
            message = f"this server takes loops of at most {MOST_ROUNDS} rounds"
            yield Finding(message, ("edges", index, "max_rounds"))
    lists = {agent.for_each for agent in base.agents.values()}
    for name, agent in spec.agents.items():
        if agent.for_each not in {None, *lists}:
            message = f"the list of agent {name!r} is not one that the served recipe iterates over"
            yield Finding(message, ("agents", name, "for_each"))


def _agent(name: str, agent: AgentSpec, used: set[str], limits: ServerLimits) -> Iterator[Finding]:
    if agent.model not in used:
        models = ", ".join(map(repr, sorted(used)))
        yield Finding(
            f"the served recipe uses no model {agent.model!r}", ("agents", name, "model"), f"it uses {models}"
        )
    if agent.tools:
        yield Finding(ALONE, ("agents", name, "tools"), "remove it", at_key=True)
    if agent.generate.max_new_tokens > limits.tokens:
        message = f"this server allows at most {limits.tokens} new tokens"
        yield Finding(message, ("agents", name, "generate", "max_new_tokens"))
