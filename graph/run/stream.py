"""Watch a run, or many, as an async iterator.

The work lives in a task of its own, not in the generator that hands out what comes of it: so a loop over it can be left
at any point, in any task, and the work is cancelled and cleaned up all the same.
"""

import asyncio
import math
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from .events import Event
from .result import Result
from .run import Listener, Run

__all__ = ["Feed", "RunStream", "Stream"]


T = TypeVar("T")


class Stream(Generic[T]):
    """What comes of some work, as an async iterator; the work begins with the first step.

    After the last item failed work raises its error. Leaving the loop early cancels it; `async with` around the loop
    also waits until it has let go of everything.
    """

    def __init__(self, work: Callable[[], Awaitable[Any]], feed: "Feed[T]"):
        self._items = _items(work, feed)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        return await anext(self._items)

    async def aclose(self) -> None:
        """Cancel the work if it still goes on, and wait until it has freed everything."""
        await self._items.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class RunStream(Stream[Event]):
    """The events of one run. `result` may be read at any time."""

    def __init__(self, start: Callable[[Listener], Run]):
        feed = Feed[Event]()
        self._run = start(feed)
        super().__init__(self._run.execute, feed)

    async def enter(self) -> str | None:
        """Enter the run into its store now, before its first event; gives its id. None where it has no store."""
        return await self._run.enter()

    def park(self) -> None:
        """Have the run stay unfinished in its store where it is cancelled, so that it can be resumed."""
        self._run.parks = True

    @property
    def result(self) -> Result:
        """What is known by now: partial while the run goes on, whole when it has ended."""
        return self._run.result


class Feed(Generic[T]):
    """Puts what it is called with where the reader takes it, until the reader has left."""

    stream: MemoryObjectSendStream[T]

    def __call__(self, item: T) -> None:
        with suppress(anyio.BrokenResourceError):  # the reader left; what still comes is the work's own end
            self.stream.send_nowait(item)


async def _items(work: Callable[[], Awaitable[Any]], feed: Feed[T]) -> AsyncGenerator[T, None]:
    feed.stream, receive = anyio.create_memory_object_stream[T](math.inf)
    scope, ended = anyio.CancelScope(), anyio.Event()
    errors: list[Exception] = []

    async def drive() -> None:
        try:
            with scope:
                await work()
        except Exception as error:
            errors.append(error)
        finally:
            feed.stream.close()
            ended.set()

    task = _detach(drive)  # a name for it, or asyncio lets it be collected
    try:
        with receive:
            async for item in receive:
                yield item
    finally:
        scope.cancel()
        with anyio.CancelScope(shield=True):
            await ended.wait()
        del task
    if errors:
        raise errors[0]


def _detach(drive: Callable[[], Coroutine[Any, Any, None]]) -> object:
    """Start a task that belongs to no task group. What it raises must be nobody's concern."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return trio.lowlevel.spawn_system_task(drive, context=copy_context())
    return asyncio.get_running_loop().create_task(drive())
