"""Watching a run: its events, and leaving before they end."""

import gc
import json
import threading
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from cachegraph import ConfigError, Graph, InputError, RunError
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.run.events import AgentStarted, Event, RunFinished, TextDelta
from cachegraph.graph.run.stream import RunStream

pytestmark = pytest.mark.anyio


def pair(*agents: ScriptedAgent) -> Graph:
    graph = Graph(name="pair", create=scripted(*agents)).add_input("q")
    graph.add_agent("a", model="m", prompt="{{ q }}").add_agent("b", model="m", prompt="{{ a }}").add_edge("a", "b")
    graph.output = "b"
    return graph


async def collect(stream: RunStream, events: list[Event]) -> None:
    async for event in stream:
        events.append(event)  # noqa: PERF401 - those before an error count too


async def test_events_tell_the_run_in_order_and_as_json() -> None:
    events = [event async for event in pair(ScriptedAgent("b", "two words")).stream(q="x")]
    assert [event.to_dict()["type"] for event in events] == [
        *("run_started", "agent_started", "text_delta", "agent_finished"),
        *("agent_started", "text_delta", "text_delta", "edge_travelled", "agent_finished", "run_finished"),
    ]
    assert "".join(event.text for event in events if isinstance(event, TextDelta) and event.agent == "b") == "two words"
    assert [event.at for event in events] == sorted(event.at for event in events)
    last = json.loads(json.dumps([event.to_dict() for event in events]))[-1]
    assert last["result"]["text"] == "two words"
    assert last["result"]["edges"][0]["to"] == "b"


async def test_a_failed_run_tells_its_end_and_then_raises() -> None:
    events: list[Event] = []
    with pytest.raises(RunError, match="agent 'b' failed"):
        await collect(pair(ScriptedAgent("b", fail=ValueError("no"))).stream(q="x"), events)
    assert events[-2].to_dict()["type"] == "agent_failed"
    assert isinstance(events[-1], RunFinished)
    assert events[-1].result.status == "failed"


async def test_models_that_can_not_be_loaded_are_told_too() -> None:
    stream = pair(ScriptedAgent("b", fail_open=ConfigError("no key"))).stream(q="x")
    assert isinstance(await anext(stream), RunFinished)
    with pytest.raises(ConfigError, match="no key"):
        await anext(stream)


async def test_the_first_read_checks_the_inputs_and_a_call_does_not() -> None:
    stream = pair().stream()
    assert stream.result.status == "not_started"
    with pytest.raises(InputError, match="'q' is missing"):
        await anext(stream)
    with pytest.raises(InputError, match="'q' is missing"):
        await pair().stream().enter()


async def test_inputs_that_take_long_to_check_do_not_hold_up_the_event_loop() -> None:
    graph = pair().add_input("rows", type="list", schema={"items": {"type": "integer"}})
    threads = set[int]()
    checked = graph.check_inputs

    def check_inputs(*given: Any, **named: Any) -> dict[str, Any]:
        found = checked(*given, **named)  # a short check ends in an error here, and runs again in a thread
        threads.add(threading.get_ident())
        return found

    graph.check_inputs = check_inputs  # type: ignore[method-assign]
    rows = list(range(9_000))
    async with graph.stream(q="x", rows=rows) as stream:
        await anext(stream)
    async with graph.stream_map([{"q": "x", "rows": rows}]) as ending:
        await anext(ending)
    assert threads.isdisjoint({threading.get_ident()})


async def test_a_stream_that_is_never_read_runs_nothing() -> None:
    agent = ScriptedAgent("a")
    async with pair(agent).stream(q="x") as stream:
        assert stream.result.status == "not_started"
    assert not agent.opened


async def test_leaving_early_cancels_the_run_and_waits_for_it() -> None:
    slow = ScriptedAgent("b", gate=anyio.Event())
    graph = pair(slow)
    with anyio.fail_after(60):
        async with graph.stream(q="x") as stream:
            async for event in stream:
                if isinstance(event, AgentStarted) and event.agent == "b":
                    break
        assert stream.result.status == "cancelled"
        assert stream.result.agents["a"].text == "a(x)"
        slow.gate = None
        assert (await graph.arun(q="y")).text == "b(a(y))"


async def test_a_loop_that_is_just_left_cancels_the_run_too() -> None:
    ended = anyio.Event()

    class Slow(ScriptedAgent):
        async def turn(self, turn):  # type: ignore[no-untyped-def]
            try:
                await anyio.sleep_forever()
            finally:
                ended.set()

    async def leave() -> None:
        async for event in pair(Slow("b")).stream(q="x"):
            if isinstance(event, AgentStarted) and event.agent == "b":
                await wait_all_tasks_blocked()
                return

    import warnings

    with anyio.fail_after(60), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # trio's, which asks for `async with`
        await leave()
        gc.collect()
        await ended.wait()


async def test_a_slow_reader_does_not_hold_up_the_run() -> None:
    stream = pair().stream(q="x")
    await anext(stream)
    with anyio.fail_after(60):
        while stream.result.status == "running":
            await wait_all_tasks_blocked()
    assert len([event async for event in stream]) == 8
