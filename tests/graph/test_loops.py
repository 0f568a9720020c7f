"""Loops: rounds, their ends, what travels round after round, and memory."""

import gc
import weakref
from typing import Any

import anyio
import pytest

from cachegraph import RunError
from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.payload import Route
from cachegraph.graph.plan import wiring
from cachegraph.graph.run.events import AgentFinished
from cachegraph.graph.topology.loops import find_loops

from .flow import Edges, build, heard, says

pytestmark = pytest.mark.anyio

BACK = {"edge": "critic>writer", "max_rounds": 3}


async def test_a_loop_goes_round_as_often_as_it_may() -> None:
    writer, wrote = heard("writer")
    result = await build(["writer>critic", BACK], writer, says("critic", "1", "2", "3"), output="writer").arun()
    assert result.text == "writer(2)"
    assert wrote() == [{}, {"critic": "1"}, {"critic": "2"}]
    agent = result.agents["writer"]
    assert (agent.turn, agent.turns, [each.turn for each in agent.earlier]) == ("writer#3", 3, ["writer", "writer#2"])
    assert [each.text for each in agent.earlier] == ["writer()", "writer(1)"]


async def test_until_ends_a_loop_before() -> None:
    back = {**BACK, "until": "'good' in critic"}
    result = await build(["writer>critic", back], says("critic", "bad", "good", "never"), output="writer").arun()
    assert (result.agents["writer"].turns, result.agents["critic"].text) == (2, "good")


async def test_an_agent_outside_hears_the_last_round_once() -> None:
    out, told = heard("out")
    edges: Edges = ["writer>critic", BACK, "writer>out", "critic>out"]
    await build(edges, says("writer", "w1", "w2", "w3"), says("critic", "c1", "c2", "c3"), out, output="out").arun()
    assert told() == [{"writer": "w3", "critic": "c3"}]


async def test_what_comes_from_outside_is_there_in_every_round() -> None:
    critic, told = heard("critic")
    edges: Edges = ["source>writer", "source>critic", "writer>critic", BACK]
    writer = says("writer", "w1", "w2", "w3")
    await build(edges, says("source", "S"), writer, critic, output="critic").arun()
    assert told() == [{"source": "S", "writer": text} for text in ("w1", "w2", "w3")]


async def test_an_agent_may_read_its_own_last_reply() -> None:
    result = await build([{"edge": "a>a", "max_rounds": 4}], ScriptedAgent("a"), output="a").arun()
    assert result.text == "a(a(a(a())))"


async def test_a_debate_is_one_loop_in_which_everybody_hears_everybody() -> None:
    back = [{"edge": edge, "max_rounds": 2} for edge in ("b>a", "c>a", "c>b")]
    b, told = heard("b")
    edges: Edges = ["a>b", "a>c", "b>c", *back, "a>judge", "b>judge", "c>judge"]
    agents = [says("a", "a1", "a2"), says("c", "c1", "c2"), b]
    result = await build(edges, *agents, output="judge").arun()
    assert told() == [{"a": "a1"}, {"a": "a2", "c": "c1"}]
    assert [result.agents[name].turns for name in "abc"] == [2, 2, 2]
    assert result.agents["judge"].turns == 1


async def test_an_inner_loop_ends_in_every_round_of_the_outer_one() -> None:
    edges: Edges = ["a>b", "b>c", {"edge": "c>b", "max_rounds": 3}, "c>d", {"edge": "d>a", "max_rounds": 2}]
    finished = [event.turn async for event in build(edges, output="d").stream() if isinstance(event, AgentFinished)]
    assert finished == [
        *("a", "b", "c", "b#2", "c#2", "b#3", "c#3", "d"),
        *("a#2", "b#4", "c#4", "b#5", "c#5", "b#6", "c#6", "d#2"),
    ]


async def test_a_route_may_leave_a_loop() -> None:
    route = [{"when": "'good' in critic", "to": "out"}, {"to": "writer"}]
    edges: Edges = ["writer>critic", {**BACK, "max_rounds": 9}, "critic>out"]
    graph = build(edges, says("critic", "bad", "good"), output=["out", "writer"], critic={"route": route})
    result = await graph.arun()
    assert (result.agents["writer"].turns, result.agents["out"].status) == (2, "finished")


async def test_an_agent_skipped_in_one_round_may_run_in_the_next() -> None:
    edges: Edges = ["a>b", {"edge": "b>c", "when": "'go' in b"}, "c>d", "b>d", {"edge": "d>a", "max_rounds": 3}]
    d, told = heard("d")
    result = await build(edges, says("b", "stop", "go", "stop"), d, output="d").arun()
    assert [set(each) for each in told()] == [{"b"}, {"b", "c"}, {"b"}]
    assert (result.agents["c"].status, result.agents["c"].turns) == ("finished", 1)


async def test_all_rounds_may_go_over_as_one_message() -> None:
    out, told = heard("out")
    edges: Edges = ["writer>critic", BACK, {"edge": "writer>out", "rounds": "all"}]
    await build(edges, says("writer", "w1", "w2", "w3"), out, output="out").arun()
    assert told() == [{"writer": "w1\n\nw2\n\nw3"}]


async def test_a_failure_in_a_loop_cancels_who_waits_for_the_loop() -> None:
    critic = ScriptedAgent("critic", fail=ValueError("no"))
    edges: Edges = ["writer>critic", BACK, "writer>out", "side>out"]
    with pytest.raises(RunError) as caught, anyio.fail_after(60):
        await build(edges, critic, output="out", on_error="continue").arun()
    result = caught.value.result
    states = {name: agent.status for name, agent in result.agents.items()}
    assert states == {"writer": "finished", "critic": "failed", "out": "cancelled", "side": "finished"}


class Plane(SentCache):
    """Stands for a KV cache whose life is watched."""


async def test_a_thousand_rounds_keep_one_cache_an_edge_and_a_bounded_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "_route", lambda edge, *_: Route(edge, "both", needs_cache=True))
    born: list[weakref.ref[Plane]] = []
    alive: list[int] = []

    def make() -> Plane:
        plane = Plane((), (), (), "m", "a")
        born.append(weakref.ref(plane))
        return plane

    def count(turn: Any) -> str:
        if len(born) % 500 == 0:
            gc.collect()
            alive.append(sum(ref() is not None for ref in born))
        return "x"

    agents = [ScriptedAgent("writer", count, cache=make), ScriptedAgent("critic", count, cache=make)]
    edges: list[Any] = [{"edge": "writer>critic", "channel": "cache"}, {**BACK, "max_rounds": 1000, "channel": "cache"}]
    result = await build(edges, *agents, output="writer").arun()
    assert result.agents["writer"].turns == 1000
    assert len(result.agents["writer"].earlier) == 8
    assert max(alive) <= 2


def test_loops_that_share_agents_are_one_and_nested_ones_are_two() -> None:
    forward = [("a", "b"), ("b", "c"), ("c", "d")]
    loops, none = find_loops(forward, [("b", "a"), ("d", "c")])
    assert ([sorted(loop.body) for loop in loops], none) == ([["a", "b"], ["c", "d"]], [])
    loops, _ = find_loops(forward, [("c", "a"), ("d", "b")])
    assert [sorted(loop.body) for loop in loops] == [["a", "b", "c", "d"]]
    loops, _ = find_loops(forward, [("c", "b"), ("d", "a")])
    assert [(sorted(loop.body), loop.parent) for loop in loops] == [(["a", "b", "c", "d"], None), (["b", "c"], 0)]
    assert find_loops(forward, [("a", "d")])[1] == [("a", "d")]
