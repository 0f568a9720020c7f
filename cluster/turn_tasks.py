"""Runs a replica's work below one long task, so that the worker threads of one turn serve the next."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import anyio.abc

__all__ = ["TurnTasks"]

T = TypeVar("T")


class TurnTasks:
    """Tasks whose outermost task never ends.

    anyio's worker threads end with the outermost task that started them, and Ray starts each call of an actor as a task
    of its own. A turn renders its prompt in such a thread; starting one for each turn takes longer than rendering.
    """

    _group: anyio.abc.TaskGroup

    async def start(self) -> None:
        """Start the outermost task."""
        started = anyio.Event()
        self._outermost = asyncio.create_task(self._live(started))
        await started.wait()

    async def _live(self, started: anyio.Event) -> None:
        async with anyio.create_task_group() as self._group:
            started.set()
            await anyio.sleep_forever()

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return or raise what the work does."""
        done: asyncio.Future[T] = asyncio.Future()
        self._group.start_soon(_settle, work, done)
        return await done


async def _settle(work: Callable[[], Awaitable[T]], done: "asyncio.Future[T]") -> None:
    try:
        result = await work()
    except Exception as error:  # a boundary: the error is the caller's; the other tasks continue
        if not done.cancelled():
            done.set_exception(error)
    except asyncio.CancelledError:
        done.cancel()  # or its caller would wait for ever
        raise
    else:
        if not done.cancelled():
            done.set_result(result)
