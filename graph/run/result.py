"""The result of a run: reply, agents, edges, totals.

The JSON form has a format version, so that later releases can read older files.
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
    """One agent's part of a run. `text` is None if the agent only prefilled or did not finish."""

    status: AgentStatus = "not_started"
    text: str | None = None
    data: Any = None  # a JSON value beside the text: a structured reply, or a function's return value
    finish_reason: FinishReason | None = None  # None if no model wrote a reply
    error: str | None = None  # why it failed or was cancelled
    prompt: str | None = None  # its prompt, if it failed; its question, if paused
    model: str = ""
    started: float | None = None  # seconds since the run began
    timing: Timing = field(default_factory=Timing)
    tokens: Tokens = field(default_factory=Tokens)
    tool_calls: list[ToolCall] = field(default_factory=list)
    memory: MemoryReport | None = None  # what it received from the run's session
    turn: str = ""  # the turn's id: the agent's name, unless it takes several turns in a run
    turns: int = 0  # number of turns begun; the other fields describe the last one
    total_timing: Timing = field(default_factory=Timing)  # of all its finished turns
    total_tokens: Tokens = field(default_factory=Tokens)
    earlier: "list[AgentResult]" = field(default_factory=list)  # preceding turns, at most 8
    items: "list[AgentResult]" = field(default_factory=list)  # of a fan-out, the result of each item
    inside: "dict[str, AgentResult]" = field(default_factory=dict)  # of a sub-graph, the results of its agents

    @property
    def is_cut(self) -> bool:
        """Whether the reply ended for another reason than the model's end token or a stop string."""
        return self.finish_reason not in (None, "stop", "eos")


@dataclass
class Totals:
    """Totals over a run: all turns of loops, items and sub-graphs. Seconds of concurrent turns add up."""

    turns: int = 0  # finished turns; an item counts as a turn
    timing: Timing = field(default_factory=Timing)
    tokens: Tokens = field(default_factory=Tokens)
    bytes: int = 0  # sent over all edges

    def copy(self) -> "Totals":
        """Return a snapshot, for use during the run."""
        return replace(self, timing=replace(self.timing), tokens=replace(self.tokens))


@dataclass
class Loading:
    """Time that a run waited before its first agent: to read, check and prepare models."""

    seconds: float = 0.0
    models: dict[str, dict[str, float]] = field(default_factory=dict)  # seconds, by model and phase


class Result(BaseModel):
    """The result of a run. `text` is the reply of the first output that ran; empty if none has.

    `status` is `finished` if every agent that was not skipped finished, `partial` if an output finished and another
    agent failed, `paused` if the run waits for a person's answer, `failed` or `cancelled` if it ended early, and
    `not_started` or `running` before its end.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    cachegraph_version: str = __version__
    graph: str
    run_id: str | None = None  # in the store, if the run has one
    status: RunStatus
    output: str  # the output agent's name
    text: str = ""
    outputs: dict[str, str] = {}  # replies of the outputs that ran, by output name
    error: str | None = None
    seconds: float = 0.0
    agents: dict[str, AgentResult] = {}
    edges: dict[tuple[str, str], EdgeReport] = {}  # (sender, receiver), once the receiver has finished
    traffic: dict[tuple[str, str], Traffic] = {}  # of the same edges, summed over all payloads
    totals: Totals = Field(default_factory=Totals)
    loading: Loading = Field(default_factory=Loading)  # of models that were not loaded yet
    warnings: list[RunWarning] = []  # lost sources, and edges that delivered nothing

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
        """Return this result as JSON text; edges are a list because JSON keys can't be pairs."""
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Result":
        """Parse the output of `to_json` of this version or an earlier one. Raises InputError."""
        try:
            return cls.model_validate_json(text)
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else f"an edge lacks {error}"
            raise InputError(f"this is not a result that cachegraph {__version__} can read ({why})") from error


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `run` or `map`, raised after all resources are freed. `result` holds the partial result."""

    def __init__(self, result: Any):
        self.result = result
        super().__init__("interrupted")
