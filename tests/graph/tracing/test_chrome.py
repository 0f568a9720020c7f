"""The trace for Chrome and Perfetto: that a viewer can draw it, and that it says what happened."""

import json
from typing import Any

import anyio
import pytest

from cachegraph import Graph, RunError
from cachegraph.agents.base import Reply, Timing, Tokens, ToolCall, Turn
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.channels.payload import EdgeReport, Payload
from cachegraph.graph.run.events import AgentFinished, AgentStarted, EdgeTravelled, Event, ToolCalled
from cachegraph.graph.run.result import AgentResult
from cachegraph.graph.tracing.chrome import chrome_trace

pytestmark = pytest.mark.anyio


class Timed(ScriptedAgent):
    """Says how long it took."""

    async def turn(self, turn: Turn) -> Reply:
        await anyio.sleep(0.02)
        timing = Timing(queued=0.002, prefill=0.008, fuse=0.001, decode=0.005)
        return Reply(Payload(self.name, self.name), timing, Tokens(3, 2, 1))


async def told(graph: Graph) -> list[Event]:
    events = []
    try:
        async with graph.stream() as stream:
            async for event in stream:
                events.append(event)  # noqa: PERF401 - those before an error count too
    except RunError:
        pass
    return events


def fan(*agents: ScriptedAgent) -> Graph:
    graph = Graph(name="fan", create=scripted(*agents))
    graph.add_agent("start", model="m", prompt="")
    for name in ("left", "right"):
        graph.add_agent(name, model="m", prompt="{{ start }}").add_edge("start", name, channel="auto")
    graph.add_agent("end", model="m", prompt="{{ left }}{{ right }}").add_edge("left", "end").add_edge("right", "end")
    graph.output = "end"
    return graph


def checked(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """The trace's events, if they are what the format asks for."""
    events: list[dict[str, Any]] = json.loads(json.dumps(trace))["traceEvents"]
    named = {(each["pid"], each["tid"]) for each in events if each["name"] == "thread_name"}
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for each in events:
        assert each["ph"] in {"X", "M", "s", "f"}
        assert (each["pid"], each["tid"]) in named or each["name"].startswith("process_")
        if each["ph"] == "X":
            assert each["dur"] >= 0
            assert each["ts"] >= 0
            tracks.setdefault((each["pid"], each["tid"]), []).append((each["ts"], each["ts"] + each["dur"]))
    for slices in tracks.values():  # on one track, two slices are apart or one is inside the other
        for start, end in slices:
            for other, until in slices:
                apart = end <= other + 0.01 or until <= start + 0.01
                assert apart or (start <= other and until <= end + 0.01) or (other <= start and end <= until + 0.01)
    starts = {each["id"]: each["ts"] for each in events if each["ph"] == "s"}
    ends = {each["id"]: each["ts"] for each in events if each["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert all(starts[key] <= ends[key] for key in starts)
    return events


def on(events: list[dict[str, Any]], track: str) -> list[str]:
    """The slices of a track by its name."""
    keys = [(each["pid"], each["tid"]) for each in events if each["ph"] == "M" and each["args"].get("name") == track]
    return [each["name"] for each in events if each["ph"] == "X" and (each["pid"], each["tid"]) in keys]


async def test_every_agent_and_model_has_a_track_and_every_edge_an_arrow() -> None:
    agents = [Timed(name) for name in ("start", "left", "right", "end")]
    events = checked(chrome_trace([("fan", await told(fan(*agents)))]))
    assert on(events, "left") == ["left", "queued", "prefill", "fuse", "decode"]
    assert on(events, "run") == ["fan"]
    assert {"prefill start", "decode end"} <= set(on(events, "script"))
    both = on(events, "script") + on(events, "script (2)")
    assert {"prefill left", "prefill right"} <= set(both)  # at work at once, so on two lanes
    arrows = {each["id"] for each in events if each["ph"] == "s"}
    assert arrows == {"1:start>left", "1:start>right", "1:left>end", "1:right>end"}
    left = next(each for each in events if each["name"] == "left")
    assert left["args"]["tokens reused"] == 1
    assert "follows a script" in left["args"]["from start"]


async def test_a_failed_run_shows_what_failed_and_what_it_cut_off() -> None:
    slow = ScriptedAgent("right", gate=anyio.Event())
    events = checked(chrome_trace([("fan", await told(fan(ScriptedAgent("left", fail=ValueError("no")), slow)))]))
    about = {each["name"]: each["args"] for each in events if each["ph"] == "X"}
    assert about["left"]["unfinished"] == "ValueError: no"
    assert about["right"]["unfinished"].startswith("cancelled")
    assert about["fan"]["status"] == "failed"


def test_turns_of_one_agent_that_overlap_get_lanes_and_those_that_follow_share_one() -> None:
    def turn(name: str, start: float, end: float) -> list[Event]:
        agent = name.partition("[")[0]
        return [AgentStarted(start, agent, turn=name), AgentFinished(end, agent, AgentResult("finished"), turn=name)]

    each = [*turn("reader[0]", 0.0, 2.0), *turn("reader[1]", 1.0, 3.0), *turn("reader[2]", 2.5, 4.0)]
    each.sort(key=lambda event: event.at)
    report = EdgeReport("text", "text")
    edge = EdgeTravelled(4.0, "reader", "writer", report, sender_turn="reader[1]")
    last = [AgentStarted(4.0, "writer"), edge, AgentFinished(5.0, "writer", AgentResult("finished"))]
    events = checked(chrome_trace([("map", [*each, *last])]))
    assert on(events, "reader") == ["reader[0]", "reader[2]"]
    assert on(events, "reader (2)") == ["reader[1]"]
    assert [each["id"] for each in events if each["ph"] == "f"] == ["1:reader[1]>writer"]


async def test_runs_stand_below_each_other() -> None:
    events = checked(chrome_trace([("text", await told(fan())), ("cache", await told(fan()))]))
    processes = {each["pid"]: each["args"]["name"] for each in events if each["name"] == "process_name"}
    assert processes == {1: "text: agents", 2: "cache: agents"}


def test_tool_calls_are_on_tracks_of_their_own_and_those_of_one_reply_side_by_side() -> None:
    def called(at: float, tool: str, seconds: float, **more: Any) -> ToolCalled:
        return ToolCalled(at, "a", ToolCall(tool, {"n": 1}, "two", seconds=seconds, **more), turn="a")

    finished = AgentFinished(3.0, "a", AgentResult("finished", timing=Timing(decode=1.0)), turn="a")
    calls = [called(1.5, "calc.add", 0.5), called(2.0, "calc.wait", 0.8), called(2.5, "calc.add", 0.2, error=True)]
    events = checked(chrome_trace([("tools", [AgentStarted(0.0, "a", turn="a"), *calls, finished])]))
    tracks = {
        each["tid"]: each["args"]["name"] for each in events if each["name"] == "thread_name" and each["pid"] == 1
    }
    drawn = [each for each in events if each["name"].startswith("calc.")]
    assert [(each["name"], each["ts"], each["dur"], tracks[each["tid"]]) for each in drawn] == [
        ("calc.add", 1_000_000, 500_000, "a: tools"),
        ("calc.wait", 1_200_000, 800_000, "a: tools (2)"),
        ("calc.add", 2_300_000, 200_000, "a: tools"),
    ]
    assert drawn[2]["args"] == {"arguments": {"n": 1}, "result": "two", "error": True}
