"""The Agent protocol: open, take turns, close; and what a turn takes and gives. No torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from cachegraph.channels.payload import EdgeReport, Payload, Route

from .sessions.session import Recollection

if TYPE_CHECKING:
    from cachegraph.channels.cache.sent_cache import SentCache
    from cachegraph.channels.peer import Peer
    from cachegraph.graph.run.executor import RunContext
    from cachegraph.graph.run.result import AgentResult

__all__ = [
    "CLOSED",
    "Agent",
    "ChoiceScore",
    "Control",
    "Delivery",
    "FinishReason",
    "Loader",
    "MemoryReport",
    "Paused",
    "Rebuilder",
    "Reply",
    "Scored",
    "Scorer",
    "Timing",
    "Tokens",
    "ToolCall",
    "Traffic",
    "Turn",
]


# Why a reply ended, in the words of the OpenAI API where it has one.
#   eos             the model ended it with its end-of-sequence token
#   stop            a stop string ended it, or its JSON was whole; an endpoint says `stop` for `eos`, too
#   length          it reached max_new_tokens, limits.max_tokens or the model's context, and may be cut in mid-sentence
#   tool_calls      it ends with calls of tools that nobody has answered
#   content_filter  the endpoint withheld it, or a part of it
#   refusal         the model declined to answer
#   error           the endpoint broke off with an error
FinishReason = Literal["stop", "eos", "length", "tool_calls", "content_filter", "refusal", "error"]


CLOSED = "agent {} is not open: its graph was closed while a run was at work; close it when its runs have ended"


@dataclass
class Timing:
    """Where an agent's time went, in seconds."""

    queued: float = 0.0  # waiting for the model, behind other requests
    prefill: float = 0.0
    transfer: float = 0.0  # moving, aligning and rotating caches
    fuse: float = 0.0
    decode: float = 0.0
    first_token: float | None = None  # from the start of the turn to the first token of the reply
    total: float = 0.0

    def add(self, other: "Timing") -> None:
        """Add another turn's seconds. Of several turns there is no one first token."""
        for name in ("queued", "prefill", "transfer", "fuse", "decode", "total"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Tokens:
    """How many positions an agent computed, and how much memory they took."""

    prefilled: int = 0
    generated: int = 0
    reused: int = 0  # positions that were not prefilled: grafted, or found among prompts that were read before
    kv_bytes: int = 0  # of the largest row it had, with what that shares with others

    def add(self, other: "Tokens") -> None:
        """Add another turn's positions; memory is that of the larger."""
        for name in ("prefilled", "generated", "reused"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.kv_bytes = max(self.kv_bytes, other.kv_bytes)


@dataclass
class Traffic:
    """What all messages of an edge were together, in every round of a loop."""

    messages: int = 0
    bytes: int = 0
    positions_fused: int = 0
    positions_grafted: int = 0
    fallbacks: int = 0  # messages that went another way than asked

    def add(self, other: "Traffic") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @classmethod
    def of(cls, report: EdgeReport) -> "Traffic":
        """One message's part."""
        fell = report.fallback_reason is not None
        return cls(1, report.bytes, report.positions_fused, report.positions_grafted, int(fell))


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool during a turn, and what came back."""

    tool: str  # server.tool, or what the model called where there is no such tool
    arguments: dict[str, Any]
    result: str
    error: bool = False  # the tool could not do what it was asked; the model was told so
    seconds: float = 0.0
    round: int = 1  # 1-based index of the reply that called it


@dataclass
class MemoryReport:
    """What a session brought to a turn."""

    turns: int = 0  # that stood in front of the prompt
    reused: int = 0  # positions whose cache was kept, and that were not prefilled
    refused: str | None = None  # why the kept cache was not used


@dataclass(frozen=True, eq=False)
class Delivery:
    """A payload and the route it travelled."""

    route: Route
    payload: Payload


@dataclass(frozen=True, eq=False)
class Turn:
    """All that an agent gets for one turn."""

    inputs: Mapping[str, Any]
    deliveries: Sequence[Delivery] = ()
    needs_text: bool = True  # somebody reads the reply: an edge, or the graph's caller
    needs_cache: bool = False  # an edge out of this agent hands over its KV cache
    on_text: Callable[[str], None] | None = None  # called with each piece of the reply as it is decoded
    on_prompt: Callable[[str], None] | None = None  # called with the prompt once it is rendered
    most_tokens: int | None = None  # to write at most: what is left of the run's budget
    id: str = ""  # `writer`; `writer#2`, `reader[3]`, `research/reader` where the agent takes several in a run
    control: "Control | None" = None  # feed the agent wrong caches, to learn whether the right ones matter
    within: "RunContext | None" = None  # of the run around it, for an agent that is a graph
    memory: Recollection | None = None  # what this agent remembers of the run's session
    on_tool: Callable[[ToolCall], None] | None = None  # called with each call of a tool, when its result is there
    generate: Mapping[str, Any] | None = None  # fields of a GenerateSpec that the run's caller has changed


@dataclass(frozen=True, eq=False)
class Control:
    """What takes the place of the caches that come over the edges of a turn; the words that come stay right.

    zero: as many positions whose keys and values are all 0. mismatched: what the same edges brought in `other`, this
    agent's turn on another example.
    """

    kind: Literal["zero", "mismatched"]
    other: "Turn | None" = None


@dataclass(frozen=True)
class ChoiceScore:
    """How likely a model finds a text behind its prompt: the natural logarithm of its probability, and its length."""

    logprob: float
    tokens: int
    characters: int
    greedy: bool = False  # whether greedy decoding would write it


class Scored(NamedTuple):
    """The scores of choices, and by sender what the edges brought to the prompt they stand behind."""

    scores: list[ChoiceScore]
    edges: dict[str, EdgeReport]


@dataclass(eq=False)
class Reply:
    """What an agent gives back: the payload for its edges, and the cost of the turn."""

    payload: Payload
    timing: Timing = field(default_factory=Timing)
    tokens: Tokens = field(default_factory=Tokens)
    edges: dict[str, EdgeReport] = field(default_factory=dict)  # by sender: what came in
    ids: Sequence[int] = ()  # the reply's tokens, where its cache is handed on
    recalled: bool = False  # the turn was taken by an earlier process of this run
    inside: "Mapping[str, AgentResult]" = field(default_factory=dict)  # of a sub-graph: its agents' results
    inside_edges: Mapping[tuple[str, str], EdgeReport] = field(default_factory=dict)  # and its edges', by full names
    inside_traffic: Mapping[tuple[str, str], Traffic] = field(default_factory=dict)
    turns: int = 1  # that this stands for: of the items of a list, of the agents of a graph
    tool_calls: list[ToolCall] = field(default_factory=list)
    memory: MemoryReport | None = None  # where the turn belongs to a session
    remembered: list[tuple[str, str]] | None = None  # role and content of what that session keeps beside the reply
    finish_reason: FinishReason | None = None  # None where no model wrote: it only read, or it is a function or person


class Agent(Protocol):
    """One agent of a graph, bound to its model. Safe to use from many runs at once."""

    name: str

    async def open(self) -> None:
        """Prepare for turns: find and load the model. Idempotent. Raises ModelError or ConfigError."""

    def peer(self) -> "Peer":
        """This agent as one end of an edge; valid once open."""

    async def turn(self, turn: Turn) -> Reply:
        """Take one turn. Cancellation frees everything within one decoding step."""

    async def close(self) -> None:
        """Release what `open` took. Idempotent."""


class Paused(Exception):
    """Raised by an agent that waits for a person. The run can be resumed with an answer to the question."""

    def __init__(self, question: str):
        self.question = question
        super().__init__(question)


@runtime_checkable
class Rebuilder(Protocol):
    """An agent that can compute the cache of a turn again that an earlier process took."""

    async def rebuild(self, turn: Turn, ids: Sequence[int], calls: Sequence[ToolCall] = ()) -> "SentCache":
        """The cache of this turn, whose reply has these tokens and made these calls: prefilled again, not decoded."""


@runtime_checkable
class Loader(Protocol):
    """An agent whose `open` loads a model."""

    @property
    def loading(self) -> Mapping[str, Mapping[str, float]]:
        """By model that `open` waited for, and by part of the work, seconds; empty where the model was there."""


class Scorer(Protocol):
    """An agent that can also say how likely it finds given replies."""

    async def score(self, turn: Turn, choices: Sequence[str], *, verbatim: bool = False) -> list[ChoiceScore]:
        """Each choice's score as the reply to this turn, all on one prefill; `verbatim` adds no space in front."""

    async def judge(self, turn: Turn, choices: Sequence[str], *, verbatim: bool = False) -> Scored:
        """The scores, and what the edges did."""
