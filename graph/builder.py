"""A recipe's value while it is being built in Python: it may be incomplete until somebody asks for the whole.

Remembers what the cache edges were told when their channel is swapped, so that swapping back restores it.
"""

from collections.abc import Collection, Mapping
from typing import Any, cast

from pydantic import BaseModel, TypeAdapter, ValidationError

from cachegraph.agents.spec import KINDS, Entry, SubgraphSpec
from cachegraph.agents.tools.spec import CommandTools, UrlTools
from cachegraph.channels.spec import CHANNELS, Channel, EdgeSpec
from cachegraph.errors import InputError, Problem, RecipeError

from .recipe.inputs import meant
from .recipe.spec import GraphSpec, InputSpec

__all__ = ["Parts", "with_inner_channels"]

EDGE: TypeAdapter[EdgeSpec] = TypeAdapter(EdgeSpec)
Pair = tuple[str, str]
FLOW = {"when", "max_rounds", "until", "rounds"}  # what an edge is told whatever its channel


class Parts:
    """The parts of a recipe, and the recipe once they make one."""

    def __init__(self, spec: GraphSpec | None, parts: Mapping[str, Any]):
        if spec is not None and parts:
            names = ", ".join(map(repr, parts))
            raise InputError(f"a graph takes a spec or its parts, not both; drop {names} or the spec")
        if spec is not None and not isinstance(spec, GraphSpec):
            kind = type(spec).__name__
            raise InputError(f"a graph's spec is a GraphSpec, not {kind}; see Graph.from_yaml and Graph.from_dict")
        self._spec = spec
        self._parts: dict[str, Any] = {"version": 1, "name": "graph", **parts}
        if spec is not None:
            self._parts = {name: getattr(spec, name) for name in GraphSpec.model_fields}
        self._kept: dict[Pair, dict[str, Any]] = {}  # what edges that are text by now were told when they had a cache

    @property
    def name(self) -> str:
        return str(self._parts["name"])

    @property
    def size(self) -> str:
        agents, edges = len(self._parts.get("agents") or ()), len(self._parts.get("edges") or ())
        return f"{agents} agent{'s' * (agents != 1)}, {edges} edge{'s' * (edges != 1)}"

    @property
    def spec(self) -> GraphSpec:
        """The whole recipe, the same object until something changes. Raises RecipeError."""
        if self._spec is None:
            try:
                self._spec = GraphSpec.model_validate(self._parts)
            except ValidationError as error:
                raise RecipeError(_problems(error, "", list(GraphSpec.model_fields))) from error
        return self._spec

    def add_input(self, name: str, data: Mapping[str, Any]) -> None:
        self._add("inputs", name, _checked(InputSpec, data, f"inputs.{name}"))

    def add_agent(self, name: str, data: Mapping[str, Any]) -> None:
        self._add("agents", name, _agent(name, data))

    def add_tools(self, name: str, data: Mapping[str, Any]) -> None:
        kind = UrlTools if "url" in data else CommandTools
        self._add("tools", name, _checked(kind, data, f"tools.{name}"))

    def add_edge(self, data: Mapping[str, Any]) -> None:
        if data["channel"] not in CHANNELS:
            raise RecipeError(f"there is no channel {data['channel']!r}{meant(data['channel'], CHANNELS)}")
        self._set("edges", (*(self._parts.get("edges") or ()), _edge(data)))

    def output(self, name: Any) -> None:
        self._parts.pop("output", None)
        self._set("answers", name)

    def with_channels(self, channel: Channel | Mapping[Pair, Channel]) -> "Parts":
        """A copy with other channels. Raises InputError for an edge or a channel that there is not."""
        spec = self.spec
        known = {(edge.sender, edge.receiver): edge.channel for edge in spec.edges}
        graphs = spec.graphs
        if isinstance(channel, Mapping):
            own, inside = _split(channel, graphs)
        else:
            own, inside = dict.fromkeys(known, channel), {name: {"*": channel} for name in graphs}
        for pair in own:
            if pair not in known:
                raise InputError(f"there is no edge {pair!r}{meant(pair, map(str, known))}")
        for name in (*own.values(), *(each for inner in inside.values() for each in inner.values())):
            if name not in CHANNELS:
                raise InputError(f"there is no channel {name!r}{meant(name, CHANNELS)}")
        kept = dict(self._kept)
        edges = tuple(_swapped(edge, {**known, **own}[edge.sender, edge.receiver], kept) for edge in spec.edges)
        agents = {**spec.agents, **{name: _told(graphs[name], inner) for name, inner in inside.items()}}
        copy = Parts(spec.model_copy(update={"edges": edges, "agents": agents}), {})
        copy._kept = kept
        return copy

    def _add(self, part: str, name: str, value: BaseModel) -> None:
        values = self._parts.get(part) or {}
        if name in values:
            raise RecipeError(f"{part} has {name!r} already; choose another name")
        self._set(part, {**values, name: value})

    def _set(self, part: str, value: Any) -> None:
        self._parts[part] = value
        self._spec = None


def with_inner_channels(spec: GraphSpec, entry: SubgraphSpec) -> GraphSpec:
    """An included recipe with the channels that its entry gives it. Raises InputError for an edge that there is not."""
    given = _by_edge(entry)
    parts = Parts(spec, {})
    if (rest := given.pop("*", None)) is not None:
        parts = parts.with_channels(rest)
    pairs: dict[Pair, Channel] = {}
    for edge, channel in given.items():
        sender, colon, receiver = edge.partition(":")
        if not colon:
            raise InputError(f"{edge!r} is no edge; write 'sender:receiver', or '*' for all")
        pairs[sender, receiver] = channel
    return parts.with_channels(pairs).spec if pairs else parts.spec


def _by_edge(entry: SubgraphSpec) -> dict[str, Channel]:
    return {"*": entry.channels} if isinstance(entry.channels, str) else dict(entry.channels or {})


def _split(
    wanted: Mapping[Pair, Channel], graphs: Collection[str]
) -> tuple[dict[Pair, Channel], dict[str, dict[str, Channel]]]:
    """Channels for edges of this recipe, and by included recipe those for edges in it: ("team/a", "team/b")."""
    own: dict[Pair, Channel] = {}
    inside: dict[str, dict[str, Channel]] = {}
    for pair, channel in wanted.items():
        graph = pair[0].partition("/")[0]
        if graph in graphs and all(name.startswith(f"{graph}/") for name in pair):
            sender, receiver = (name.removeprefix(f"{graph}/") for name in pair)
            inside.setdefault(graph, {})[f"{sender}:{receiver}"] = channel
        else:
            own[pair] = channel
    return own, inside


def _told(entry: SubgraphSpec, inner: Mapping[str, Channel]) -> SubgraphSpec:
    channels = dict(inner) if "*" in inner else {**_by_edge(entry), **inner}
    return entry.model_copy(update={"channels": channels.get("*") if channels.keys() == {"*"} else channels})


def _swapped(edge: EdgeSpec, channel: Channel, kept: dict[Pair, dict[str, Any]]) -> EdgeSpec:
    if edge.channel == channel:
        return edge
    pair = (edge.sender, edge.receiver)
    if edge.channel != "text":
        kept[pair] = edge.model_dump(exclude={"sender", "receiver", "channel", *FLOW}, exclude_unset=True)
    told = kept.get(pair, {}) if channel != "text" else {}
    flow = edge.model_dump(include=FLOW, exclude_unset=True)
    return _edge({"from": edge.sender, "to": edge.receiver, "channel": channel, **flow, **told})


def _edge(data: Mapping[str, Any]) -> EdgeSpec:
    try:
        return EDGE.validate_python(dict(data))
    except ValidationError as error:
        raise RecipeError(_problems(error, f"the edge from {data['from']!r} to {data['to']!r}")) from error


def _agent(name: str, data: Mapping[str, Any]) -> Entry:
    kind = next((kind for key, kind in KINDS.items() if key in data), KINDS["model"])
    return cast("Entry", _checked(kind, data, f"agents.{name}"))


def _checked(kind: type[BaseModel], data: Mapping[str, Any], place: str) -> BaseModel:
    try:
        return kind.model_validate(dict(data))
    except ValidationError as error:
        raise RecipeError(_problems(error, place, list(kind.model_fields))) from error


def _problems(error: ValidationError, place: str, known: list[str] | None = None) -> list[Problem]:
    problems = []
    for detail in error.errors():
        where = ".".join([*([place] if place else []), *(str(part) for part in detail["loc"])])
        message, hint = detail["msg"][:1].lower() + detail["msg"][1:], ""
        if detail["type"] == "extra_forbidden":
            message = "there is no such key"
            hint = meant(detail["loc"][-1], known).removeprefix("; ") if known and len(detail["loc"]) == 1 else ""
        elif detail["type"] == "missing":
            message = "it is missing"
        problems.append(Problem(f"{where}: {message}", hint=hint))
    return problems
