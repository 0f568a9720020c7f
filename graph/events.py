"""What happens during a run, as it happens. Each event says when, in seconds since the run began.

`to_dict()` is the stable form for JSON: a `type`, then the fields. Events are built only if somebody listens.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from cachegraph.channels.message import EdgeReport

from .result import AgentResult, Result

__all__ = [
    "AgentCancelled",
    "AgentFailed",
    "AgentFinished",
    "AgentStarted",
    "EdgeTravelled",
    "Event",
    "RunFinished",
    "RunStarted",
    "TextDelta",
]


@dataclass(frozen=True)
class Event:
    """The base of all events."""

    type: ClassVar[str] = "event"

    at: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for `json.dumps`."""
        return {"type": self.type, **asdict(self)}


@dataclass(frozen=True)
class RunStarted(Event):
    """All models are loaded and all edges decided; the first agents start."""

    type = "run_started"

    graph: str


@dataclass(frozen=True)
class AgentStarted(Event):
    """All that this agent waited for has arrived."""

    type = "agent_started"

    agent: str


@dataclass(frozen=True)
class TextDelta(Event):
    """The next piece of an agent's reply."""

    type = "text_delta"

    agent: str
    text: str


@dataclass(frozen=True)
class EdgeTravelled(Event):
    """A receiver has taken a sender's message; the report says how."""

    type = "edge_travelled"

    sender: str
    receiver: str
    report: EdgeReport


@dataclass(frozen=True)
class AgentFinished(Event):
    """An agent's reply is complete."""

    type = "agent_finished"

    agent: str
    result: AgentResult


@dataclass(frozen=True)
class AgentFailed(Event):
    """An agent's turn ended in an error, or took longer than its timeout."""

    type = "agent_failed"

    agent: str
    error: str


@dataclass(frozen=True)
class AgentCancelled(Event):
    """An agent won't start, because `because_of` failed upstream."""

    type = "agent_cancelled"

    agent: str
    because_of: str


@dataclass(frozen=True)
class RunFinished(Event):
    """The last event of every run, however it ended."""

    type = "run_finished"

    result: Result

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.type, "at": self.at, "result": self.result.model_dump(mode="json")}
