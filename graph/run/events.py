"""Events of a run, for listeners. Each has its time in seconds since the run began.

`to_dict()` is the stable JSON form, described in docs/reference/events.md: the format version, a `type`, then the
fields. Events are built only if a listener is registered.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from cachegraph.agents.base import ToolCall
from cachegraph.agents.prompt.prompt_view import PromptView
from cachegraph.channels.payload import EdgeReport

from ..run_warning import RunWarning
from .result import AgentResult, Result

__all__ = [
    "EVENTS_VERSION",
    "AgentCancelled",
    "AgentEvent",
    "AgentFailed",
    "AgentFinished",
    "AgentPaused",
    "AgentPrefilled",
    "AgentSkipped",
    "AgentStarted",
    "EdgeTravelled",
    "Event",
    "RunFinished",
    "RunStarted",
    "TextDelta",
    "ToolCalled",
]

EVENTS_VERSION = 1  # incremented when a field is removed or changes its meaning, not for new types and fields


@dataclass(frozen=True)
class Event:
    """The base of all events."""

    type: ClassVar[str] = "event"

    at: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for `json.dumps`."""
        return {"schema_version": EVENTS_VERSION, "type": self.type, **self._fields()}

    def _fields(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RunStarted(Event):
    """All models are loaded and all edges are decided; the first agents start."""

    type = "run_started"

    graph: str
    warnings: tuple[RunWarning, ...] = ()  # sources lost over the decided edges


@dataclass(frozen=True)
class AgentEvent(Event):
    """The base of events in one agent's turn. `turn` is the agent's name unless it takes several turns in a run."""

    agent: str
    turn: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if not self.turn:
            object.__setattr__(self, "turn", self.agent)


@dataclass(frozen=True)
class AgentStarted(AgentEvent):
    """An agent has received all its deliveries and starts its turn."""

    type = "agent_started"


@dataclass(frozen=True)
class AgentPrefilled(AgentEvent):
    """An agent has computed its prompt; its reply follows, if it writes one."""

    type = "agent_prefilled"

    tokens: int  # of the prompt, grafts included; 0 if the model is elsewhere
    prompt: PromptView  # for people who look at the run; not part of the JSON form

    def _fields(self) -> dict[str, Any]:
        return {"at": self.at, "agent": self.agent, "turn": self.turn, "tokens": self.tokens}


@dataclass(frozen=True)
class TextDelta(AgentEvent):
    """The next piece of an agent's reply."""

    type = "text_delta"

    text: str


@dataclass(frozen=True)
class ToolCalled(AgentEvent):
    """An agent has called a tool and received the result."""

    type = "tool_called"

    call: ToolCall


@dataclass(frozen=True)
class EdgeTravelled(Event):
    """A receiver has taken a sender's payload; the report says how."""

    type = "edge_travelled"

    sender: str
    receiver: str
    report: EdgeReport
    sender_turn: str = field(default="", kw_only=True)
    turn: str = field(default="", kw_only=True)  # the receiver's

    def __post_init__(self) -> None:
        if not self.sender_turn:
            object.__setattr__(self, "sender_turn", self.sender)
        if not self.turn:
            object.__setattr__(self, "turn", self.receiver)


@dataclass(frozen=True)
class AgentFinished(AgentEvent):
    """An agent's reply is complete; `recalled`: it comes from an earlier attempt of this run, not computed again."""

    type = "agent_finished"

    result: AgentResult
    recalled: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class AgentFailed(AgentEvent):
    """An agent's turn raised an error or exceeded its timeout."""

    type = "agent_failed"

    error: str
    kind: str = field(default="Exception", kw_only=True)


@dataclass(frozen=True)
class AgentPaused(AgentEvent):
    """An agent waits for a person. Independent agents continue; then the run ends and can be resumed."""

    type = "agent_paused"

    question: str


@dataclass(frozen=True)
class AgentSkipped(AgentEvent):
    """An agent does not run in this round, because every edge to it was skipped."""

    type = "agent_skipped"


@dataclass(frozen=True)
class AgentCancelled(AgentEvent):
    """An agent does not start because `because_of` failed upstream, or is stopped because nobody waits for it."""

    type = "agent_cancelled"

    because_of: str


@dataclass(frozen=True)
class RunFinished(Event):
    """The last event of every run, however it ended."""

    type = "run_finished"

    result: Result

    def _fields(self) -> dict[str, Any]:
        return {"at": self.at, "result": self.result.model_dump(mode="json")}
