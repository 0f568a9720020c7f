"""The result of a run: reply, agents, edges, totals.

The JSON form carries its own version, so that files of results outlive the version that wrote them.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from cachegraph import __version__
from cachegraph.agents.base import FinishReason, MemoryReport, Timing, Tokens, ToolCall, Traffic
from cachegraph.channels.payload import EdgeReport
from cachegraph.errors import InputError

from ..run_warning import RunWarning

__all__ = ["UNKEPT", "AgentResult", "AgentStatus", "Interrupted", "Loading", "Result", "RunStatus", "Totals"]

UNKEPT = (
    "it waits for a person, and nothing keeps the run until there is an answer; run it with a store (`store=Store()`, "
    "or on the command line without --no-store)"
)

AgentStatus = Literal["not_started", "running", "finished", "skipped", "paused", "failed", "cancelled"]
RunStatus = Literal["not_started", "running", "finished", "partial", "paused", "failed", "cancelled"]


@dataclass
class AgentResult:
    """One agent's part of a run. `text` is None where the agent wrote nothing: it only read, or did not finish."""

    status: AgentStatus = "not_started"
    text: str | None = None
    data: Any = None  # a JSON value beside the text: a structured reply, what a function returned
    finish_reason: FinishReason | None = None  # why the reply ended; None where no model wrote one
    error: str | None = None  # why it failed, or was cancelled
    prompt: str | None = None  # what it was given, if it failed; what it asks, if it is paused
    model: str = ""
    started: float | None = None  # seconds since the run began
    timing: Timing = field(default_factory=Timing)
    tokens: Tokens = field(default_factory=Tokens)
    tool_calls: list[ToolCall] = field(default_factory=list)
    memory: MemoryReport | None = None  # what the run's session brought to it
    turn: str = ""  # the id of the turn that this tells of: the agent's name, unless it takes several in a run
    turns: int = 0  # how many it has begun: a loop's agent takes one a round, and this tells of the last
    total_timing: Timing = field(default_factory=Timing)  # of all its turns that have finished
    total_tokens: Tokens = field(default_factory=Tokens)
    earlier: "list[AgentResult]" = field(default_factory=list)  # the turns before it, at most 8
    items: "list[AgentResult]" = field(default_factory=list)  # of a turn an item, each of them
    inside: "dict[str, AgentResult]" = field(default_factory=dict)  # of a graph in an agent's place: its agents

    @property
    def is_cut(self) -> bool:
        """Whether something else than the model's own end, or a stop string, ended the reply."""
        return self.finish_reason not in (None, "stop", "eos")


@dataclass
class Totals:
    """What a whole run took: every turn of a loop, every item, every sub-graph. Seconds of turns at once add up."""

    turns: int = 0  # that have finished; an item is a turn
    timing: Timing = field(default_factory=Timing)
    tokens: Tokens = field(default_factory=Tokens)
    bytes: int = 0  # over all edges

    def copy(self) -> "Totals":
        """As they are now, while the run goes on."""
        return replace(self, timing=replace(self.timing), tokens=replace(self.tokens))


@dataclass
class Loading:
    """What a run waited for before its first agent: models that were read, checked and prepared for it."""

    seconds: float = 0.0
    models: dict[str, dict[str, float]] = field(default_factory=dict)  # by model, then by part of the work: seconds


class Result(BaseModel):
    """One run of a graph. `text` is the output's reply, of several outputs the first that ran; empty if none has.

    `status` is `finished` if every agent did that was not skipped, `partial` if an output did and another agent failed,
    `paused` if it can go on when a person has answered, `failed` or `cancelled` if the run was ended before, and
    `not_started` or `running` in an early look at it.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    cachegraph_version: str = __version__
    graph: str
    run_id: str | None = None  # in the store, if the run is kept in one
    status: RunStatus
    output: str  # the output agent's name
    text: str = ""
    outputs: dict[str, str] = {}  # by the outputs' names, the replies of those that ran
    error: str | None = None
    seconds: float = 0.0
    agents: dict[str, AgentResult] = {}
    edges: dict[tuple[str, str], EdgeReport] = {}  # (sender, receiver), once the receiver has finished
    traffic: dict[tuple[str, str], Traffic] = {}  # of the same edges, all messages together
    totals: Totals = Field(default_factory=Totals)
    loading: Loading = Field(default_factory=Loading)  # of models that were not there yet
    warnings: list[RunWarning] = []  # what reaches nobody, and edges that carried nothing

    @field_validator("edges", "traffic", mode="before")
    @classmethod
    def _edges_by_pair(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        edges = [dict(edge) for edge in value]
        return {(edge.pop("from"), edge.pop("to")): edge for edge in edges}

    @field_serializer("edges", "traffic")
    def _edges_as_list(self, edges: dict[tuple[str, str], EdgeReport | Traffic]) -> list[dict[str, Any]]:
        return [{"from": sender, "to": receiver, **asdict(report)} for (sender, receiver), report in edges.items()]

    def to_json(self, indent: int | None = None) -> str:
        """This result as JSON text; edges are a list, since JSON has no pairs as keys."""
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Result":
        """The result that `to_json` wrote, by this version or an earlier one. Raises InputError."""
        try:
            return cls.model_validate_json(text)
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else f"an edge lacks {error}"
            raise InputError(f"this is not a result that cachegraph {__version__} can read ({why})") from error


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `run` or `map`, raised after everything was freed. `result` holds what had finished."""

    def __init__(self, result: Any):
        self.result = result
        super().__init__("interrupted")
