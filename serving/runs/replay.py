"""The events of a stored run, rebuilt from its turns for a viewer. Pieces of replies are not stored."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cachegraph.graph.run.events import EVENTS_VERSION

from .live_run import without_paths

if TYPE_CHECKING:
    from cachegraph.graph.store.records import StoredRun, StoredTurn, Unfinished

__all__ = ["rebuilt_events"]

ROUND_OR_ITEM = re.compile(r"#\d+|\[\d+\]")
UNFINISHED = {"paused": "agent_paused", "failed": "agent_failed"}


def rebuilt_events(stored: "StoredRun") -> list[dict[str, Any]]:
    """Return the events that this run would have sent, in order of time, with the same fields."""
    events = [event for turn in stored.turns for event in _of_turn(turn)]
    events.sort(key=lambda event: event["at"])  # stable: events of one turn keep their order
    end = max([stored.seconds, *(event["at"] for event in events)])
    events += [_of_unfinished(turn, each, end) for turn, each in stored.outcome.unfinished.items()]
    result = {"graph": stored.graph, "run_id": stored.id, "status": stored.status, "seconds": stored.seconds}
    begin = _event("run_started", 0.0, graph=stored.graph, warnings=[])
    if stored.status == "running":
        return [begin, *events]
    return [begin, *events, _event("run_finished", end, result={**result, "error": stored.outcome.error})]


def _of_turn(stored: "StoredTurn") -> Iterator[dict[str, Any]]:
    recorded, turn = stored.recorded, stored.turn
    names = {"agent": _agent(turn), "turn": turn}
    started = recorded.agent.get("started") or 0.0
    ended = started + ((recorded.agent.get("timing") or {}).get("total") or 0.0)
    yield _event("agent_started", started, **names)
    for call in recorded.agent.get("tool_calls") or ():
        yield _event("tool_called", ended, **names, call=call)
    around = names["agent"].rpartition("/")[0]
    for sender, report in recorded.edges.items():
        name = f"{around}/{sender}" if around else sender
        ends = {"sender": name, "receiver": names["agent"], "sender_turn": name, "turn": turn}
        yield _event("edge_travelled", ended, **ends, report=report)
    result = {**recorded.agent, "text": recorded.text, "data": recorded.data}
    yield _event("agent_finished", ended, **names, result=result, recalled=True)


def _of_unfinished(turn: str, unfinished: "Unfinished", at: float) -> dict[str, Any]:
    kind = UNFINISHED.get(unfinished.status, "agent_cancelled")
    names = {"agent": _agent(turn), "turn": turn}
    if kind == "agent_paused":
        return _event(kind, at, **names, question=unfinished.prompt or "")
    if kind == "agent_failed":
        return _event(kind, at, **names, error=unfinished.error or "", kind="Exception")
    return _event(kind, at, **names, because_of="")


def _event(kind: str, at: float, /, **fields: Any) -> dict[str, Any]:
    plain: dict[str, Any] = without_paths({"schema_version": EVENTS_VERSION, "type": kind, "at": at, **fields})
    return plain


def _agent(turn: str) -> str:
    """Return the full name of a turn's agent: `research/reader` for `research/reader#2[3]`."""
    return ROUND_OR_ITEM.sub("", turn)
