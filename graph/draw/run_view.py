"""A run as drawn, from a result or from the store."""

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
    """A run as drawn: turns by agent and payload reports by edge, both in order."""

    title: str
    status: str
    seconds: float
    error: str | None = None
    turns: dict[str, list[AgentResult]] = field(default_factory=dict)
    edges: dict[tuple[str, str], list[EdgeReport]] = field(default_factory=dict)

    def check(self, spec: GraphSpec) -> None:
        """Raise InputError if this run has another recipe."""
        unknown = [name for name in self.turns if name not in spec.agents]
        if unknown:
            names = ", ".join(map(repr, unknown))
            raise InputError(f"{self.title} had agents that are not in the recipe {spec.name!r}: {names}; draw its own")


def agent_of(turn: str) -> str:
    """Return the agent of a turn: `reader` for `reader#2[3]`, the sub-graph for `research/reader`."""
    return turn.partition("/")[0].partition("#")[0].partition("[")[0]


def from_result(result: Result) -> RunView:
    """Build the view from a result, which has a loop agent's last turns and each edge's last payload."""
    title = f"run {result.run_id}" if result.run_id else f"this run of {result.graph!r}"
    turns = {name: [*agent.earlier, agent] for name, agent in result.agents.items() if agent.status != "not_started"}
    edges = {pair: [report] for pair, report in result.edges.items()}
    return RunView(title, result.status, result.seconds, result.error, turns, edges)


def from_store(run: "StoredRun") -> RunView:
    """Build the view from a stored run, which may still be running."""
    view = RunView(f"run {run.id}", run.status, run.seconds, run.outcome.error)
    for stored in run.turns:
        if "/" in stored.turn:  # inside a sub-graph, whose own turn includes it
            continue
        name = agent_of(stored.turn)
        view.turns.setdefault(name, []).append(_agent(stored.turn, stored.recorded.agent))
        for sender, report in stored.recorded.edges.items():
            view.edges.setdefault((sender, name), []).append(EdgeReport(**report))
    for turn, unfinished in run.outcome.unfinished.items():
        result = AgentResult(error=unfinished.error, turn=turn)
        result.status = unfinished.status  # type: ignore[assignment]  # the store has more statuses than results
        view.turns.setdefault(agent_of(turn), []).append(result)
    return view


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
