"""Write runs as a trace that chrome://tracing and ui.perfetto.dev open.

Uses the JSON format of Chrome's trace viewer: complete events ("X"), flows ("s" and "f") and names ("M"), times in
microseconds. Phases have durations but no start times, so they are drawn in their usual order within a turn.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..run.events import (
    AgentFailed,
    AgentFinished,
    AgentPaused,
    AgentStarted,
    EdgeTravelled,
    Event,
    RunFinished,
    ToolCalled,
)
from ..run.result import AgentResult

__all__ = ["chrome_trace"]

PHASES = ("queued", "transfer", "prefill", "fuse", "decode")
ENGINES = 1000  # process ids: a run's number for its agents, this plus the run's number for its models


@dataclass
class _Slice:
    """One turn as drawn: the agent's track, start and end."""

    agent: str
    turn: str
    start: float
    end: float
    lane: int
    result: AgentResult | None = None
    recalled: bool = False  # the result comes from an earlier attempt of the run
    error: str | None = None
    edges: list[EdgeTravelled] = field(default_factory=list)
    tools: list[ToolCalled] = field(default_factory=list)


def chrome_trace(runs: Sequence[tuple[str, Iterable[Event]]]) -> dict[str, Any]:
    """Build one trace of runs, given as (title, events); a truncated run ends at its last event."""
    events: list[dict[str, Any]] = []
    for number, (title, run_events) in enumerate(runs, 1):
        events += _run(number, title, run_events)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _run(number: int, title: str, events: Iterable[Event]) -> list[dict[str, Any]]:
    slices, end, ending = _slices(events)
    tracks = _Tracks(number)
    out = [_named("process_name", number, 0, f"{title}: agents"), _named("process_sort_index", number, 0, number)]
    out.append(_slice(number, 0, title, 0.0, end, ending))
    for turn in slices.values():
        track = tracks.agent(turn)
        out.append(_slice(number, track, turn.turn, turn.start, turn.end, _about(turn)))
        out += _phases(turn, number, track)
        out += _on_engine(turn, number, tracks)
        out += [_tool(turn, called, number, tracks) for called in turn.tools]
    out += _arrows(slices, number, tracks)
    return [*out, *tracks.names(title)]


def _slices(events: Iterable[Event]) -> tuple[dict[str, _Slice], float, dict[str, Any]]:
    """Return the slices by turn, the run's end time, and its outcome."""
    slices: dict[str, _Slice] = {}
    busy: dict[str, set[int]] = {}  # busy lanes, by agent
    end, ending = 0.0, {}
    for event in events:
        end = max(end, event.at)
        match event:
            case AgentStarted():
                lanes = busy.setdefault(event.agent, set())
                lane = next(free for free in range(len(lanes) + 1) if free not in lanes)
                lanes.add(lane)
                slices[event.turn] = _Slice(event.agent, event.turn, event.at, -1.0, lane)
            case EdgeTravelled() if event.turn in slices:
                slices[event.turn].edges.append(event)
            case ToolCalled() if event.turn in slices:
                slices[event.turn].tools.append(event)
            case AgentFinished() | AgentFailed() | AgentPaused() if event.turn in slices:
                turn = slices[event.turn]
                turn.end = event.at
                busy[event.agent].discard(turn.lane)
                if isinstance(event, AgentFinished):
                    turn.result, turn.recalled = event.result, event.recalled
                else:
                    turn.error = f"asks: {event.question}" if isinstance(event, AgentPaused) else event.error
            case RunFinished():
                ending = {"status": event.result.status, "error": event.result.error}
    for turn in slices.values():
        if turn.end < 0:
            turn.end, turn.error = end, "cancelled: the run was ended first"
    return slices, end, ending


class _Tracks:
    """Assigns thread ids in order of first use. Overlapping turns of one agent get separate tracks."""

    def __init__(self, number: int):
        self._number = number
        self._agents: dict[tuple[str, int], int] = {}
        self._engines: dict[tuple[str, int], int] = {}
        self._free: dict[tuple[str, int], float] = {}

    def agent(self, turn: _Slice) -> int:
        return self._agents.setdefault((turn.agent, turn.lane), len(self._agents) + 1)

    def engine(self, model: str, start: float, end: float) -> int:
        """Return a free lane of the model, so that turns in one batch are stacked."""
        lane = self._free_lane(model, start, end)
        return self._engines.setdefault((model, lane), len(self._engines) + 1)

    def tools(self, agent: str, start: float, end: float) -> int:
        """Return a free lane for an agent's tools: a reply may call several concurrently."""
        name = f"{agent}: tools"
        return self._agents.setdefault((name, self._free_lane(name, start, end)), len(self._agents) + 1)

    def _free_lane(self, name: str, start: float, end: float) -> int:
        lane = 0
        while self._free.get((name, lane), 0.0) > start + 1e-9:
            lane += 1
        self._free[name, lane] = end
        return lane

    def names(self, title: str) -> list[dict[str, Any]]:
        out = [_named("thread_name", self._number, 0, "run")]
        out += [_named("thread_name", self._number, track, _lane(*key)) for key, track in self._agents.items()]
        if self._engines:
            process = ENGINES + self._number
            out.append(_named("process_name", process, 0, f"{title}: models"))
            out.append(_named("process_sort_index", process, 0, process))
            out += [_named("thread_name", process, track, _lane(*key)) for key, track in self._engines.items()]
        return out


def _lane(name: str, lane: int) -> str:
    return name if lane == 0 else f"{name} ({lane + 1})"


def _spans(turn: _Slice) -> list[tuple[str, float, float]]:
    """Lay out a turn's phases one after the other."""
    if turn.result is None or turn.recalled:
        return []
    spans, at = [], turn.start
    for phase in PHASES:
        seconds = getattr(turn.result.timing, phase)
        if seconds > 0 and at < turn.end:
            until = min(at + seconds, turn.end)  # concurrent phases add up to more than the turn
            spans.append((phase, at, until))
            at = until
    return spans


def _phases(turn: _Slice, process: int, track: int) -> list[dict[str, Any]]:
    return [_slice(process, track, phase, start, end) for phase, start, end in _spans(turn)]


def _tool(turn: _Slice, called: ToolCalled, number: int, tracks: _Tracks) -> dict[str, Any]:
    call = called.call
    start = max(called.at - call.seconds, turn.start)
    about = {"arguments": call.arguments, "result": call.result, "error": call.error}
    return _slice(number, tracks.tools(turn.agent, start, called.at), call.tool, start, called.at, about)


def _on_engine(turn: _Slice, number: int, tracks: _Tracks) -> list[dict[str, Any]]:
    """Draw the same phases, without queueing, on the model's track."""
    spans = [span for span in _spans(turn) if span[0] != "queued"]
    if turn.result is None or not spans:
        return []
    track = tracks.engine(turn.result.model, spans[0][1], spans[-1][2])
    process = ENGINES + number
    return [_slice(process, track, f"{phase} {turn.turn}", start, end) for phase, start, end in spans]


def _arrows(slices: dict[str, _Slice], number: int, tracks: _Tracks) -> list[dict[str, Any]]:
    out = []
    for turn in slices.values():
        for edge in turn.edges:
            sender = slices.get(edge.sender_turn)
            if sender is None:
                continue
            arrow = {
                "name": edge.report.channel_used,
                "cat": "edge",
                "id": f"{number}:{edge.sender_turn}>{edge.turn}",
                "pid": number,
            }
            out.append({**arrow, "ph": "s", "tid": tracks.agent(sender), "ts": _micro(sender.end)})
            out.append({**arrow, "ph": "f", "bp": "e", "tid": tracks.agent(turn), "ts": _micro(turn.start)})
    return out


def _about(turn: _Slice) -> dict[str, Any]:
    if turn.result is None:
        return {"unfinished": turn.error}
    if turn.recalled:
        return {"recalled": "finished in an earlier part of this run"}
    tokens, first = turn.result.tokens, turn.result.timing.first_token
    about: dict[str, Any] = {
        "model": turn.result.model,
        "tokens read": tokens.prefilled,
        "tokens reused": tokens.reused,
        "tokens written": tokens.generated,
        "first token, s": first,
    }
    for edge in turn.edges:
        report = edge.report
        about[f"from {edge.sender_turn}"] = f"{report.channel_used}, {report.bytes:,} bytes" + (
            f"; not {report.asked}: {report.fallback_reason}" if report.fallback_reason else ""
        )
    return about


def _slice(
    process: int, track: int, name: str, start: float, end: float, about: dict[str, Any] | None = None
) -> dict[str, Any]:
    span = {"name": name, "cat": "cachegraph", "ph": "X", "pid": process, "tid": track}
    return {**span, "ts": _micro(start), "dur": _micro(end) - _micro(start), "args": about or {}}


def _named(kind: str, process: int, track: int, name: str | int) -> dict[str, Any]:
    what = "sort_index" if kind.endswith("sort_index") else "name"
    return {"name": kind, "ph": "M", "pid": process, "tid": track, "args": {what: name}}


def _micro(seconds: float) -> float:
    return round(seconds * 1e6, 3)
