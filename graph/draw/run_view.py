"""One view of a run for drawing, made of a result or of the store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cachegraph.agents.base import Timing, Tokens
from cachegraph.channels.payload import EdgeReport
from cachegraph.errors import InputError

from ..recipe.spec import GraphSpec
from ..run.result import AgentResult, Result

if TYPE_CHECKING:
    from ..store.records import StoredRun

__all__ = ["RunView", "agent_of", "from_result", "from_store"]


@dataclass
class RunView:
    """A run as it is drawn: by agent its turns, by edge what each message did, both in their order."""

    title: str
    status: str
    seconds: float
    error: str | None = None
    turns: dict[str, list[AgentResult]] = field(default_factory=dict)
    edges: dict[tuple[str, str], list[EdgeReport]] = field(default_factory=dict)

    def check(self, spec: GraphSpec) -> None:
        """Raise InputError if this is no run of that recipe."""
        unknown = [name for name in self.turns if name not in spec.agents]
        if unknown:
            names = ", ".join(map(repr, unknown))
            raise InputError(f"{self.title} had agents that are not in the recipe {spec.name!r}: {names}; draw its own")


def agent_of(turn: str) -> str:
    """Whose turn it is: `reader#2[3]` is the reader's, `research/reader` the sub-graph's."""
    return turn.partition("/")[0].partition("#")[0].partition("[")[0]


def from_result(result: Result) -> RunView:
    """What a result tells: of an agent in a loop its last turns, of an edge what its last message did."""
    title = f"run {result.run_id}" if result.run_id else f"this run of {result.graph!r}"
    turns = {name: [*agent.earlier, agent] for name, agent in result.agents.items() if agent.status != "not_started"}
    edges = {pair: [report] for pair, report in result.edges.items()}
    return RunView(title, result.status, result.seconds, result.error, turns, edges)


def from_store(run: "StoredRun") -> RunView:
    """What the store keeps, of a run that may still go on."""
    happened = RunView(f"run {run.id}", run.status, run.seconds, run.outcome.error)
    for each in run.turns:
        if "/" in each.turn:  # within a sub-graph, whose own turn counts it
            continue
        name = agent_of(each.turn)
        happened.turns.setdefault(name, []).append(_agent(each.turn, each.recorded.agent))
        for sender, report in each.recorded.edges.items():
            happened.edges.setdefault((sender, name), []).append(EdgeReport(**report))
    for turn, unfinished in run.outcome.unfinished.items():
        result = AgentResult(error=unfinished.error, turn=turn)
        result.status = unfinished.status  # type: ignore[assignment]  # the store knows more than results do
        happened.turns.setdefault(agent_of(turn), []).append(result)
    return happened


def _agent(turn: str, plain: Mapping[str, Any]) -> AgentResult:
    timing, tokens = (plain.get(key) or {} for key in ("timing", "tokens"))
    return AgentResult(
        status=plain.get("status", "finished"),
        model=plain.get("model", ""),
        started=plain.get("started"),
        timing=Timing(**timing),
        tokens=Tokens(**tokens),
        finish_reason=plain.get("finish_reason"),
        turn=turn,
    )
