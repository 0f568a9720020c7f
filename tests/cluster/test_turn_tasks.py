"""The work of a replica runs below one task that outlives every call."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from cachegraph.cluster.turn_tasks import TurnTasks


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs for ever in a thread, as an actor of Ray has one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    asyncio.run_coroutine_threadsafe(_end(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _end() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def test_the_thread_of_one_call_serves_the_next(loop: asyncio.AbstractEventLoop) -> None:
    tasks = TurnTasks()

    async def where() -> threading.Thread:
        return await anyio.to_thread.run_sync(threading.current_thread)

    asyncio.run_coroutine_threadsafe(tasks.start(), loop).result(60)
    first, second = (asyncio.run_coroutine_threadsafe(tasks.run(where), loop).result(60) for _ in range(2))
    assert first is second


def test_an_error_is_its_callers_alone(loop: asyncio.AbstractEventLoop) -> None:
    tasks, failed = TurnTasks(), asyncio.Event()

    async def fail() -> None:
        failed.set()
        raise ValueError("no")

    async def wait() -> str:
        await failed.wait()
        await anyio.lowlevel.checkpoint()
        return "done"

    asyncio.run_coroutine_threadsafe(tasks.start(), loop).result(60)
    waiting = asyncio.run_coroutine_threadsafe(tasks.run(wait), loop)
    with pytest.raises(ValueError, match="no"):
        asyncio.run_coroutine_threadsafe(tasks.run(fail), loop).result(60)
    assert waiting.result(60) == "done"


def test_a_call_whose_work_is_cancelled_ends(loop: asyncio.AbstractEventLoop) -> None:
    tasks = TurnTasks()

    async def cancelled() -> None:
        raise asyncio.CancelledError

    asyncio.run_coroutine_threadsafe(tasks.start(), loop).result(60)
    with pytest.raises(CancelledError):
        asyncio.run_coroutine_threadsafe(tasks.run(cancelled), loop).result(60)
