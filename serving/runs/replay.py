"""The events of a run for a viewer: those in memory, and before them what its stored turns tell.

Pieces of replies are not stored.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cachegraph.graph.run.events import EVENTS_VERSION

from .live_run import EncodedEvent, LiveRun, without_paths

if TYPE_CHECKING:
    from cachegraph.graph.store.records import StoredRun, StoredTurn, Unfinished

__all__ = ["Replay", "rebuilt_events", "replay"]

ROUND_OR_ITEM = re.compile(r"#\d+|\[\d+\]")
UNFINISHED = {"paused": "agent_paused", "failed": "agent_failed"}


class Replay(NamedTuple):
    """The events of a run so far, as JSON, and the id of the last one; None if they are all from the store."""

    events: Callable[[], list[str]]  # rebuilds what is stored: call it in a thread
    last: str | None


def replay(stored: "StoredRun", live: LiveRun | None) -> Replay:
    """Return what a viewer of this run needs; `live` is the run while this process has it."""
    if live is None:
        return Replay(lambda: _encoded(rebuilt_events(stored)), None)
    kept = list(live.events)
    last = live.event_id(live.dropped + len(kept) - 1) if kept else None
    if not live.dropped:
        return Replay(lambda: [event.data for event in kept], last)
    if not live.at_work:
        return Replay(lambda: _encoded(rebuilt_events(stored)), last)
    return Replay(lambda: _encoded(_before(kept, rebuilt_events(stored))) + [event.data for event in kept], last)


def _before(kept: Sequence[EncodedEvent], rebuilt: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of turns that had finished before those in memory."""
    later = {event.turn for event in kept if event.type == "agent_finished"}
    return [event for event in rebuilt if event["type"] != "run_finished" and event.get("turn") not in later]


def _encoded(events: list[dict[str, Any]]) -> list[str]:
    return [json.dumps(event, default=str) for event in events]


def rebuilt_events(stored: "StoredRun") -> list[dict[str, Any]]:
    """Return the events that this run would have sent, in order of time, with the same fields."""
    events = [event for turn in stored.turns for event in _of_turn(turn)]
    events.sort(key=lambda event: event["at"])  # stable: events of one turn keep their order
    end = max([stored.seconds, *(event["at"] for event in events)])
    events += [_of_unfinished(turn, unfinished, end) for turn, unfinished in stored.outcome.unfinished.items()]
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
