"""Calls that run at the same time: their results in order, and the first error as it is."""

from functools import partial

import anyio
import pytest

from cachegraph.common.run_all import run_all

pytestmark = pytest.mark.anyio


async def test_results_come_in_the_order_of_the_calls_whichever_ends_first() -> None:
    later = anyio.Event()

    async def first() -> str:
        await later.wait()
        return "first"

    async def second() -> str:
        later.set()
        return "second"

    assert await run_all([first, second]) == ["first", "second"]
    assert await run_all([]) == []


async def test_the_first_error_cancels_the_others_and_is_raised_without_a_group() -> None:
    cancelled = []

    async def wait() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(True)
            raise

    async def fail() -> None:
        await anyio.wait_all_tasks_blocked()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="^broken$"):
        await run_all([wait, fail])
    assert cancelled == [True]


async def test_no_more_calls_run_at_the_same_time_than_allowed_and_none_starts_after_an_error() -> None:
    running, most, started = 0, 0, []

    async def work(number: int) -> int:
        nonlocal running, most
        started.append(number)
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1
        if number == 5:
            raise ValueError("five")
        return number

    assert await run_all([partial(work, number) for number in range(5)], 2) == [0, 1, 2, 3, 4]
    assert most == 2
    with pytest.raises(ValueError, match="five"):
        await run_all([partial(work, number) for number in range(5, 50)], 2)
    assert max(started) < 10
