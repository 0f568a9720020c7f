"""A clock that jumps: hours pass at once, in order, and nobody at work is overtaken."""

import time
from typing import Literal

import anyio
import pytest

from cachegraph import Graph, RunError
from cachegraph.testing import FakeClock, Say, Script

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])
Backend = Literal["asyncio", "trio"]


@BACKENDS
def test_hours_of_waiting_pass_at_once_and_are_told(backend: Backend) -> None:
    graph = Graph(agents={"a": {"model": "m", "prompt": ""}}, output="a", create=Script(a=Say("done", after=7200)))
    began, clock = time.perf_counter(), FakeClock(backend=backend)
    assert clock.run(graph.arun).text == "done"
    assert clock.now == pytest.approx(7200)
    assert time.perf_counter() - began < 60


@BACKENDS
def test_a_timeout_fires_before_what_takes_longer(backend: Backend) -> None:
    script = Script(slow=Say(after=31), quick=Say("in time", after=29))
    for name, fails in (("slow", True), ("quick", False)):
        agent = {"model": "m", "prompt": "", "timeout": 30}
        graph, clock = Graph(agents={name: agent}, output=name, create=script), FakeClock(backend=backend)
        if fails:
            with pytest.raises(RunError, match="longer than its timeout of 30 s"):
                clock.run(graph.arun)
        else:
            assert clock.run(graph.arun).text == "in time"
        assert clock.now == pytest.approx(30 if fails else 29)


@BACKENDS
def test_sleepers_wake_in_order(backend: Backend) -> None:
    async def race() -> list[float]:
        woke: list[float] = []

        async def sleep(seconds: float) -> None:
            await anyio.sleep(seconds)
            woke.append(seconds)

        async with anyio.create_task_group() as group:
            for seconds in (300.0, 5.0, 60.0):
                group.start_soon(sleep, seconds)
        return woke

    assert FakeClock(backend=backend).run(race) == [5.0, 60.0, 300.0]


def test_the_clock_stands_still_while_a_thread_works() -> None:
    async def work() -> bool:
        with anyio.move_on_after(10) as scope:
            await anyio.to_thread.run_sync(time.sleep, 0.2)
        return scope.cancelled_caught

    clock = FakeClock()
    assert clock.run(work) is False
    assert clock.now < 10
