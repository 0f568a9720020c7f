"""Events of a run, for listeners. Each event says when, in seconds since the run began.

`to_dict()` is the stable form for JSON, described in docs/reference/events.md: the version of that form, a `type`, then
the fields. Events are built only if somebody listens.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from cachegraph.agents.base import ToolCall
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
    "AgentSkipped",
    "AgentStarted",
    "EdgeTravelled",
    "Event",
    "RunFinished",
    "RunStarted",
    "TextDelta",
    "ToolCalled",
]

EVENTS_VERSION = 1  # grows when a field goes or changes its meaning; new types and fields come without


@dataclass(frozen=True)
class Event:
    """The base of all events."""

    type: ClassVar[str] = "event"

    at: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for `json.dumps`."""
        return {"schema_version": EVENTS_VERSION, "type": self.type, **self._fields()}

    def _fields(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RunStarted(Event):
    """All models are loaded and all edges decided; the first agents start."""

    type = "run_started"

    graph: str
    warnings: tuple[RunWarning, ...] = ()  # what reaches nobody over the decided edges


@dataclass(frozen=True)
class AgentEvent(Event):
    """The base of what happens in one agent's turn. `turn` is the agent's name unless it takes several in a run."""

    agent: str
    turn: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if not self.turn:
            object.__setattr__(self, "turn", self.agent)


@dataclass(frozen=True)
class AgentStarted(AgentEvent):
    """All that this agent waited for has arrived."""

    type = "agent_started"


@dataclass(frozen=True)
class TextDelta(AgentEvent):
    """The next piece of an agent's reply."""

    type = "text_delta"

    text: str


@dataclass(frozen=True)
class ToolCalled(AgentEvent):
    """An agent has called a tool, and the result is there."""

    type = "tool_called"

    call: ToolCall


@dataclass(frozen=True)
class EdgeTravelled(Event):
    """A receiver has taken a sender's message; the report says how."""

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
    """An agent's reply is complete; `recalled`: it was so in an earlier part of this run, and is not computed again."""

    type = "agent_finished"

    result: AgentResult
    recalled: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class AgentFailed(AgentEvent):
    """An agent's turn ended in an error, or took longer than its timeout."""

    type = "agent_failed"

    error: str
    kind: str = field(default="Exception", kw_only=True)


@dataclass(frozen=True)
class AgentPaused(AgentEvent):
    """An agent waits for a person. What doesn't depend on it goes on; then the run ends, to be resumed."""

    type = "agent_paused"

    question: str


@dataclass(frozen=True)
class AgentSkipped(AgentEvent):
    """An agent won't start in this round, because every edge to it was skipped."""

    type = "agent_skipped"


@dataclass(frozen=True)
class AgentCancelled(AgentEvent):
    """An agent won't start, because `because_of` failed upstream; or it is stopped, because nobody waits for it."""

    type = "agent_cancelled"

    because_of: str


@dataclass(frozen=True)
class RunFinished(Event):
    """The last event of every run, however it ended."""

    type = "run_finished"

    result: Result

    def _fields(self) -> dict[str, Any]:
        return {"at": self.at, "result": self.result.model_dump(mode="json")}
