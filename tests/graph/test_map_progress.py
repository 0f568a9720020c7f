"""Many rows at once: told of as they end, in whatever order, and stopped where nobody reads on."""

import anyio
import pytest

from cachegraph import Graph, InputError, RunError
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.run.batch import RowResult

pytestmark = pytest.mark.anyio

ROWS = [{"q": "a"}, {"q": "bad"}, {"q": "c"}]


def answer(turn: object) -> str:
    if turn.inputs["q"] == "bad":  # type: ignore[attr-defined]
        raise ValueError("no idea")
    return f"<{turn.inputs['q']}>"  # type: ignore[attr-defined]


def graph(agent: ScriptedAgent | None = None) -> Graph:
    built = Graph(name="g", create=scripted(agent or ScriptedAgent("a", answer))).add_input("q")
    built.add_agent("a", model="m", prompt="{{ q }}").output = "a"
    return built


def test_each_row_is_told_of_as_it_ends_failed_ones_too() -> None:
    told: list[RowResult] = []
    results = graph().map(ROWS, max_concurrent=2, return_errors=True, on_result=told.append)
    assert sorted((row.index, row.result.status) for row in told) == [(0, "finished"), (1, "failed"), (2, "finished")]
    assert [(row.done, row.total) for row in told] == [(1, 3), (2, 3), (3, 3)]
    assert {row.index: row.result.text for row in told} == {n: result.text for n, result in enumerate(results)}


def test_a_row_that_failed_is_told_of_before_the_error_is_raised() -> None:
    told: list[RowResult] = []
    with pytest.raises(RunError, match="1 of 3 rows failed"):
        graph().map(ROWS, on_result=told.append)
    assert len(told) == 3


async def test_results_come_as_they_are_there_and_not_in_the_rows_order() -> None:
    gate = anyio.Event()

    class Waits(ScriptedAgent):
        async def turn(self, turn):  # type: ignore[no-untyped-def]
            if turn.inputs["q"] == "a":
                await gate.wait()
            return await super().turn(turn)

    order = []
    async with graph(Waits("a", answer)).stream_map(ROWS) as rows:
        async for row in rows:
            order.append(row.index)
            if row.done == 2:
                gate.set()
    assert sorted(order) == [0, 1, 2]
    assert order[-1] == 0


async def test_leaving_the_loop_stops_what_still_runs() -> None:
    never, ended = anyio.Event(), []

    class Waits(ScriptedAgent):
        async def turn(self, turn):  # type: ignore[no-untyped-def]
            if turn.inputs["q"] == "c":
                try:
                    await never.wait()
                finally:
                    ended.append("c")
            return await super().turn(turn)

    async with graph(Waits("a", answer)).stream_map(ROWS) as rows:
        async for row in rows:
            if row.done == 2:
                break
    assert ended == ["c"]


async def test_what_the_callback_raises_ends_all_rows() -> None:
    def full(_: RowResult) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        await graph().amap(ROWS, max_concurrent=1, on_result=full)


async def test_rows_are_checked_before_the_first_runs() -> None:
    rows = graph().stream_map([{"q": "x"}, {"p": "y"}])
    with pytest.raises(InputError, match="row 1"):
        await anext(rows)
    with pytest.raises(InputError, match="max_concurrent"):
        async for _ in graph().stream_map(ROWS, max_concurrent=0):
            pass
