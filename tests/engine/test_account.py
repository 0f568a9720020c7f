"""On whose behalf engines are asked: runs, their agents' depth, and runs inside runs."""

import threading
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from tiny import Tiny

from cachegraph import Graph
from cachegraph.agents.base import Reply, Turn
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.engine.batching.request_context import RequestContext, current_context, request_context
from cachegraph.engine.engine import Engine

pytestmark = pytest.mark.anyio


class Asking(ScriptedAgent):
    """Notes on whose behalf it would ask an engine, in a task of its own."""

    seen: list[tuple[str, RequestContext]]

    async def turn(self, turn: Turn) -> Reply:
        async def note() -> None:
            await checkpoint()
            self.seen.append((self.name, current_context()))

        async with anyio.create_task_group() as group:
            group.start_soon(note)
        return await super().turn(turn)


def chain(seen: list[tuple[str, RequestContext]]) -> Graph:
    agents = [Asking(name) for name in "abc"]
    for agent in agents:
        agent.seen = seen
    return Graph(
        name="chain",
        agents={name: {"model": "m", "prompt": name} for name in "abc"},
        edges=[{"from": "a", "to": "b"}, {"from": "b", "to": "c"}],
        output="c",
        create=scripted(*agents),
    )


async def test_agents_ask_for_their_run_and_the_depth_they_stand_at() -> None:
    seen: list[tuple[str, RequestContext]] = []
    graph = chain(seen)
    await graph.arun()
    assert [(name, asked.depth) for name, asked in seen] == [("a", 2), ("b", 1), ("c", 0)]
    assert len({asked.run for _, asked in seen}) == 1
    await graph.arun()
    assert len({asked.run for _, asked in seen}) == 2
    assert current_context().run is None


async def test_a_run_inside_an_agent_takes_that_ones_turns() -> None:
    seen: list[tuple[str, RequestContext]] = []
    outer = RequestContext(run="outer", depth=3, tenant="t", reuse=False)
    with request_context(outer):
        await chain(seen).arun()
    assert {(asked.run, asked.tenant, asked.reuse) for _, asked in seen} == {("outer", "t", False)}
    assert [asked.depth for _, asked in seen] == [5, 4, 3]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio wakes those who are done at once in any order
async def test_an_engine_serves_by_account(tiny: Tiny) -> None:
    """A late run's prompt is read between those of one that floods; within a run, the deepest first."""
    engine = Engine(tiny("llama"))
    order: list[str] = []
    go = threading.Event()

    async def read(name: str, who: RequestContext) -> None:
        with request_context(who):
            await engine.prefill([1] * 128)
        order.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(engine.call, go.wait)
        await anyio.wait_all_tasks_blocked()
        requests: list[tuple[str, Any, int]] = [(f"flood {index}", "flood", 0) for index in range(6)]
        for name, run, depth in [*requests, ("urgent", "flood", 1), ("late", "late", 0)]:
            group.start_soon(read, name, RequestContext(run, depth))
            await anyio.wait_all_tasks_blocked()
        go.set()
    engine.close()
    assert order[:2] == ["urgent", "late"]
    assert order[2:] == [f"flood {index}" for index in range(6)]
