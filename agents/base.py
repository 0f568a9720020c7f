"""The Agent protocol, and the inputs and outputs of a turn. No torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from cachegraph.channels.payload import EdgeReport, KVSpan, Payload, Route

if TYPE_CHECKING:
    from cachegraph.channels.cache.sent_cache import SentCache
    from cachegraph.channels.peer import Peer
    from cachegraph.channels.spec import EdgeSpec
    from cachegraph.graph.run.executor import RunContext
    from cachegraph.graph.run.result import AgentResult

    from .prompt.prompt_view import PromptView
    from .sessions.session import Recollection

__all__ = [
    "CLOSED",
    "Agent",
    "ChoiceScore",
    "Control",
    "Delivery",
    "EdgeRouter",
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


# Why a reply ended, in the terms of the OpenAI API where it has one.
#   eos             the model produced its end-of-sequence token
#   stop            a stop string matched, or its JSON was complete; endpoints also report `stop` for `eos`
#   length          it reached max_new_tokens, limits.max_tokens or the model's context; may end in mid-sentence
#   tool_calls      it ends with tool calls that have no results yet
#   content_filter  the endpoint withheld all or part of it
#   refusal         the model declined to answer
#   error           the endpoint aborted with an error
FinishReason = Literal["stop", "eos", "length", "tool_calls", "content_filter", "refusal", "error"]


CLOSED = "agent {} is not open: its graph was closed while a run was at work; close it when its runs have ended"


@dataclass
class Timing:
    """The seconds of a turn, by phase."""

    queued: float = 0.0  # behind other requests to the model
    prefill: float = 0.0
    transfer: float = 0.0  # moving, aligning and rotating caches
    fuse: float = 0.0
    decode: float = 0.0
    first_token: float | None = None  # from the start of the turn to the reply's first token
    total: float = 0.0

    def add(self, other: "Timing") -> None:
        """Add another turn's seconds. Several turns have no common first token."""
        for name in ("queued", "prefill", "transfer", "fuse", "decode", "total"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Tokens:
    """The positions that an agent computed, and their memory."""

    prefilled: int = 0
    generated: int = 0
    reused: int = 0  # positions not prefilled: grafted, or found in the prefix cache
    kv_bytes: int = 0  # of its largest row, shared memory included

    def add(self, other: "Tokens") -> None:
        """Add another turn's positions; memory is the maximum of both."""
        for name in ("prefilled", "generated", "reused"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.kv_bytes = max(self.kv_bytes, other.kv_bytes)


@dataclass
class Traffic:
    """The totals of all payloads on an edge, over all rounds of a loop."""

    messages: int = 0
    bytes: int = 0
    positions_fused: int = 0
    positions_grafted: int = 0
    fallbacks: int = 0  # payloads that used another channel than requested

    def add(self, other: "Traffic") -> None:
        for counter in fields(self):
            setattr(self, counter.name, getattr(self, counter.name) + getattr(other, counter.name))

    @classmethod
    def of(cls, report: EdgeReport) -> "Traffic":
        """The traffic of one payload."""
        fell = report.fallback_reason is not None
        return cls(1, report.bytes, report.positions_fused, report.positions_grafted, int(fell))


@dataclass(frozen=True)
class ToolCall:
    """One tool call of a turn, and its result."""

    tool: str  # server.tool, or the name that the model called if no such tool exists
    arguments: dict[str, Any]
    result: str
    error: bool = False  # the tool failed; the model received the message
    seconds: float = 0.0
    round: int = 1  # 1-based index of the reply that called it


@dataclass
class MemoryReport:
    """What a session contributed to a turn."""

    turns: int = 0  # earlier turns in front of the prompt
    reused: int = 0  # positions taken from the stored cache instead of prefilled
    refused: str | None = None  # why the stored cache was not used


@dataclass(frozen=True, eq=False)
class Delivery:
    """A payload and the route it took."""

    route: Route
    payload: Payload


@dataclass(frozen=True, eq=False)
class Turn:
    """Everything an agent receives for one turn."""

    inputs: Mapping[str, Any]
    deliveries: Sequence[Delivery] = ()
    needs_text: bool = True  # an edge or the graph's caller reads the reply
    needs_cache: bool = False  # an edge out of this agent transfers its KV cache
    on_text: Callable[[str], None] | None = None  # called with each piece of the reply as it is decoded
    on_prompt: Callable[[str], None] | None = None  # called with the prompt once it is rendered
    most_tokens: int | None = None  # limit on new tokens: the rest of the run's budget
    id: str = ""  # `writer`; `writer#2`, `reader[3]`, `research/reader` if the agent takes several turns in a run
    control: "Control | None" = None  # replace received caches with wrong ones, to test whether they matter
    within: "RunContext | None" = None  # the enclosing run, for an agent that is a graph
    memory: "Recollection | None" = None  # the agent's part of the run's session
    on_tool: Callable[[ToolCall], None] | None = None  # called with each tool call once its result is there
    generate: Mapping[str, Any] | None = None  # fields of a GenerateSpec that the run's caller overrides
    on_prefill: "Callable[[PromptView], None] | None" = None  # called once the prompt is computed
    cache_layers: int | None = None  # number of leading layers of the cache that the edges read; None: all


@dataclass(frozen=True, eq=False)
class Control:
    """A control that replaces the caches received over the edges of a turn. Received text stays as it is.

    zero: as many positions, with keys and values of 0. mismatched: the caches that the same edges delivered in `other`,
    this agent's turn on another example. tuned: replaces nothing; the trained entries `prefix` precede the prompt.
    """

    kind: Literal["zero", "mismatched", "tuned"]
    other: "Turn | None" = None
    prefix: KVSpan | None = None


@dataclass(frozen=True)
class ChoiceScore:
    """The natural logarithm of a text's probability after a prompt, and the text's length."""

    logprob: float
    tokens: int
    characters: int
    greedy: bool = False  # whether greedy decoding would produce it


class Scored(NamedTuple):
    """The scores of choices, and by sender the reports of the prompt's edges."""

    scores: list[ChoiceScore]
    edges: dict[str, EdgeReport]


@dataclass(eq=False)
class Reply:
    """An agent's reply: the payload for its edges, and the cost of the turn."""

    payload: Payload
    timing: Timing = field(default_factory=Timing)
    tokens: Tokens = field(default_factory=Tokens)
    edges: dict[str, EdgeReport] = field(default_factory=dict)  # by sender
    ids: Sequence[int] = ()  # the reply's tokens, if an edge transfers its cache
    recalled: bool = False  # an earlier process of this run took the turn
    inside: "Mapping[str, AgentResult]" = field(default_factory=dict)  # results of a sub-graph's agents
    inside_edges: Mapping[tuple[str, str], EdgeReport] = field(default_factory=dict)  # of its edges, by full names
    inside_traffic: Mapping[tuple[str, str], Traffic] = field(default_factory=dict)
    turns: int = 1  # the number of turns this stands for: items of a list, agents of a graph
    tool_calls: list[ToolCall] = field(default_factory=list)
    memory: MemoryReport | None = None  # set if the turn belongs to a session
    remembered: list[tuple[str, str]] | None = None  # (role, content) messages that the session keeps beside the reply
    finish_reason: FinishReason | None = None  # None if no model wrote: it only read, or is a function or person


class Agent(Protocol):
    """One agent of a graph, bound to its model. Safe for concurrent use by many runs."""

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
    """Raised by an agent that waits for a person. Resume the run with an answer to the question."""

    def __init__(self, question: str):
        self.question = question
        super().__init__(question)


@runtime_checkable
class Rebuilder(Protocol):
    """An agent that can recompute the cache of a turn taken by an earlier process."""

    async def rebuild(self, turn: Turn, ids: Sequence[int], calls: Sequence[ToolCall] = ()) -> "SentCache":
        """Recompute the cache of this turn by prefill alone. The reply has these tokens and made these calls."""


@runtime_checkable
class Loader(Protocol):
    """An agent whose `open` loads a model."""

    @property
    def loading(self) -> Mapping[str, Mapping[str, float]]:
        """Seconds by model that `open` loaded and by phase; empty if the model was already loaded."""


@runtime_checkable
class EdgeRouter(Protocol):
    """An agent that decides the edges into it itself, because its model is in another process."""

    def route(self, edge: "EdgeSpec", sender: "Peer", folder: Path, fusers: Sequence[str]) -> Route:
        """Decide one edge, as `cachegraph.channels.load_route.route` does; `folder` is the recipe's. May block."""


class Scorer(Protocol):
    """An agent that can also score given replies."""

    async def score(self, turn: Turn, choices: Sequence[str], *, verbatim: bool = False) -> list[ChoiceScore]:
        """Score each choice as the reply to this turn, on one prefill; `verbatim` inserts no space before it."""

    async def judge(self, turn: Turn, choices: Sequence[str], *, verbatim: bool = False) -> Scored:
        """Score the choices, and report the edges."""
