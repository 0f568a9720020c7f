"""A recipe as lengths: what each agent reads and writes, and what each edge carries. Known before models load."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cachegraph.agents.prompt.prompt import PromptTemplate
from cachegraph.agents.spec import AgentSpec, EndpointSpec
from cachegraph.channels.fusers.files.card import Carries
from cachegraph.channels.payload import Route
from cachegraph.errors import InputError
from cachegraph.graph.plan.expected_routes import expected_routes, read_included
from cachegraph.graph.plan.plan import plan
from cachegraph.graph.recipe.spec import GraphSpec
from cachegraph.graph.recipe.swap_channels import swap_channels

from .constants import Form

__all__ = ["Shape", "ShapeEdge", "TurnShape", "recipe_shape"]

UNKNOWN = 40  # characters of an input without a default


@dataclass(frozen=True)
class TurnShape:
    """One agent's turn. Lengths are in characters, but for `reply`, in tokens; 0: it only reads.

    `own` is what its prompt holds beside the document and beside what edges bring, its system message included;
    `system` is the length of that message, None without one. `documents` is how often the prompt holds the document.
    `level`: agents of one level may run at the same time. `model` is a key of the constants; None for an agent without
    a local model, which costs nothing here.
    """

    name: str
    model: str | None
    level: int
    own: float
    documents: float = 0.0
    reply: int = 0
    chat: bool = True
    system: float | None = None


@dataclass(frozen=True)
class ShapeEdge:
    """One edge. `form` is what its cache does; None: it is a text edge.

    `opening` is the text before the slot in the receiver's prompt: receivers of one model with equal openings share a
    prefix over text. `why_text` is why a cache edge can't travel.
    """

    sender: str
    receiver: str
    form: Form | None = None
    carries: Carries = "reply"
    needs_text: bool = True
    needs_cache: bool = False
    both: bool = False
    fuser: str | None = None
    opening: str = ""
    why_text: str | None = None

    @property
    def name(self) -> str:
        return f"{self.sender} → {self.receiver}"


@dataclass(frozen=True)
class Shape:
    """Turns in a valid order, and edges. `document` is the longest input, and its length in characters.

    `assumed` are sentences: what the lengths take for granted.
    """

    turns: tuple[TurnShape, ...]
    edges: tuple[ShapeEdge, ...]
    outputs: frozenset[str]
    document: str | None = None
    length: float = 0.0
    assumed: tuple[str, ...] = field(default=())

    def over_text(self) -> "Shape":
        """The same with text on every edge."""
        edges = (replace(edge, form=None, needs_text=True, needs_cache=False) for edge in self.edges)
        return replace(self, edges=tuple(edges))

    def turn(self, name: str) -> TurnShape:
        return next(turn for turn in self.turns if turn.name == name)

    def handed_over(self, turn: TurnShape, length: float) -> float:
        """The characters that an agent without a reply hands over as text: its prompt without the system message."""
        return turn.own - (turn.system or 0.0) + turn.documents * length


def recipe_shape(spec: GraphSpec, folder: Path, channel: Literal["cache"] | None = None) -> Shape:
    """The shape of a checked recipe with its default inputs; with `channel`, of that channel on every edge."""
    spec = swap_channels(spec, channel) if channel is not None else spec
    assumed: list[str] = []
    values = _values(spec, assumed)
    read = {name for agent in spec.speakers.values() for name in _reads(agent, values)}
    document = max(sorted(read), key=lambda name: len(values[name]), default=None)
    order = plan(spec)
    routes = expected_routes(spec, folder, lambda entry: read_included(entry, folder))
    levels = {name: level for level, names in enumerate(order.generations) for name in names}
    turns = [_turn(spec, name, levels[name], values, document, assumed) for name in order.steps]
    edges = [_edge(spec, route, values) for route in routes.values()]
    if order.loops:
        assumed.append("loops: one round")
    if any(getattr(agent, "for_each", None) is not None for agent in spec.agents.values()):
        assumed.append("lists: one item")
    return Shape(
        tuple(turns),
        tuple(edges),
        frozenset(spec.outputs.values()),
        document,
        float(len(values[document])) if document is not None else 0.0,
        tuple(dict.fromkeys(assumed)),
    )


def model_key(spec: GraphSpec, agent: AgentSpec) -> str | None:
    """The key of an agent's local model; equal for equal entries. None behind an endpoint."""
    entry = spec.models.get(agent.model, agent.model)
    if isinstance(entry, EndpointSpec):
        return None
    return entry if isinstance(entry, str) else entry.model_dump_json(exclude_defaults=True)


def _values(spec: GraphSpec, assumed: list[str]) -> dict[str, str]:
    """The inputs' defaults as text; an input without one is assumed to be short."""
    values = {}
    for name, declared in spec.inputs.items():
        values[name] = "x" * UNKNOWN if declared.default is None else str(declared.default)
        if declared.default is None:
            assumed.append(f"input {name!r} has no default: {UNKNOWN} characters")
    return values


def _reads(agent: AgentSpec, values: Mapping[str, str]) -> list[str]:
    sources = [text for _, text in agent.templates()]
    return [name for name in values if any(name in source for source in sources)]


def _turn(
    spec: GraphSpec, name: str, level: int, values: Mapping[str, str], document: str | None, assumed: list[str]
) -> TurnShape:
    agent = spec.agents[name]
    if not isinstance(agent, AgentSpec) or (key := model_key(spec, agent)) is None:
        assumed.append(f"agent {name!r} has no local model: its time is not counted, its reply is {UNKNOWN} characters")
        return TurnShape(name, None, level, UNKNOWN)
    if agent.uses_tools:
        assumed.append(f"agent {name!r} calls no tool")
    try:
        messages = _messages(spec, name, agent, values)
    except InputError:  # its code wants other values than made-up ones
        assumed.append(f"the prompt of agent {name!r} is as long as its template")
        own = sum(len(text) for _, text in agent.templates())
        return TurnShape(name, key, level, own, 0.0, agent.generate.max_new_tokens, agent.chat is not False)
    spans = [span for message in messages for span in message.content.spans]
    of_document = sum(span.end - span.start for span in spans if span.origin == document and document is not None)
    length = len(values[document]) if document is not None else 0
    own = sum(len(message.content.text) for message in messages) - of_document
    documents = of_document / length if length else 0.0
    limit, chat = agent.generate.max_new_tokens, agent.chat is not False
    system = sum(len(message.content.text) for message in messages if message.role == "system")
    return TurnShape(name, key, level, own, documents, limit, chat, system if agent.system is not None else None)


def _messages(
    spec: GraphSpec, name: str, agent: AgentSpec, values: Mapping[str, str], slots: Sequence[str] = ()
) -> list[Any]:
    upstream = [edge.sender for edge in spec.edges if edge.receiver == name]
    template = PromptTemplate(name, agent, upstream)
    given = {read: text for read, text in values.items() if read in template.reads.names}
    return template.messages(given, slots)


def _edge(spec: GraphSpec, route: Route, values: Mapping[str, str]) -> ShapeEdge:
    sender, receiver = route.edge.sender, route.edge.receiver
    agent = spec.agents[receiver]
    opening = ""
    if isinstance(agent, AgentSpec) and sender in spec.agents:
        opening = _opening(spec, receiver, agent, values, sender)
    form: Form | None = None
    if route.used != "text":
        form = "graft" if route.fuser is None else "translate" if route.carries is not None else "fuse"
    return ShapeEdge(
        sender,
        receiver,
        form,
        route.carries or "reply",
        route.needs_text,
        route.needs_cache,
        route.used == "both",
        route.fuser,
        opening,
        route.fallback_reason,
    )


def _opening(spec: GraphSpec, name: str, agent: AgentSpec, values: Mapping[str, str], sender: str) -> str:
    """The text in front of a sender's slot, with the roles of the messages."""
    before = ""
    try:
        messages = _messages(spec, name, agent, values, [sender])
    except InputError:
        return name  # shared with no other agent
    for message in messages:
        before += f"\n{message.role}\n"
        for span in message.content.spans:
            if span.origin == sender:
                return before
            before += message.content.text[span.start : span.end]
    return before
