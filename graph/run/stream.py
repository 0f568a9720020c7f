"""Stream one run, or many, as an async iterator.

The work runs in a separate task, not in the generator that yields its items. A caller can therefore leave the loop at
any point, in any task, and the work is still cancelled and cleaned up.
"""

import asyncio
import math
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from functools import partial
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
    """The items that some work produces, as an async iterator; the first step starts the work.

    Failed work raises its error after the last item. Leaving the loop early cancels the work; `async with` around the
    loop also waits until it has freed its resources.
    """

    def __init__(self, work: Callable[[], Awaitable[Any]], feed: "Feed[T]"):
        self._items = _items(work, feed)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        return await anext(self._items)

    async def aclose(self) -> None:
        """Cancel unfinished work, and wait until it has freed its resources."""
        await self._items.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class RunStream(Stream[Event]):
    """The events of one run. Read `result` at any time.

    `waiting` stands for the run until `begin` creates it: with the first event that is read, or with `enter`.
    """

    def __init__(self, waiting: Run, begin: Callable[[Listener], Awaitable[Run]]):
        feed = Feed[Event]()
        self._later = _LaterRun(waiting, partial(begin, feed))
        super().__init__(self._later.execute, feed)

    async def enter(self) -> str | None:
        """Enter the run into its store before its first event and return its id; None without a store."""
        return await (await self._later.begun()).enter()

    def park(self) -> None:
        """On cancellation, leave the run unfinished in its store, so that it can be resumed."""
        self._later.run.parks = True

    @property
    def result(self) -> Result:
        """The current result: partial during the run, complete after it."""
        return self._later.run.result


class _LaterRun:
    """A run that is created when it begins. The task that executes it must not keep its stream alive."""

    def __init__(self, waiting: Run, begin: Callable[[], Awaitable[Run]]):
        self.run = waiting
        self._begin: Callable[[], Awaitable[Run]] | None = begin
        self._beginning: anyio.Lock | None = None

    async def begun(self) -> Run:
        if self._begin is None:
            return self.run
        self._beginning = self._beginning or anyio.Lock()  # one task may enter the run while another reads events
        async with self._beginning:
            if self._begin is not None:
                run = await self._begin()
                run.parks = self.run.parks
                self.run, self._begin = run, None
        return self.run

    async def execute(self) -> Result:
        return await (await self.begun()).execute()


class Feed(Generic[T]):
    """Sends items to the reader until the reader leaves."""

    stream: MemoryObjectSendStream[T]

    def __call__(self, item: T) -> None:
        with suppress(anyio.BrokenResourceError):  # the reader left; the work is ending
            self.stream.send_nowait(item)


async def _items(work: Callable[[], Awaitable[Any]], feed: Feed[T]) -> AsyncGenerator[T, None]:
    feed.stream, receive = anyio.create_memory_object_stream[T](math.inf)
    scope, ended = anyio.CancelScope(), anyio.Event()
    errors: list[Exception] = []

    async def drive() -> None:
        try:
            with scope:
                await work()
        except Exception as error:  # raised after the last item
            errors.append(error)

    def end() -> None:
        feed.stream.close()
        ended.set()

    task = _detach(drive, end)  # keep a reference, or asyncio lets it be collected
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


def _detach(drive: Callable[[], Coroutine[Any, Any, None]], end: Callable[[], None]) -> object:
    """Start a task outside any task group, and call `end` after it. The task must handle its own errors."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():

        async def drive_to_end() -> None:
            try:
                await drive()
            finally:
                end()

        return trio.lowlevel.spawn_system_task(drive_to_end, context=copy_context())
    task = asyncio.get_running_loop().create_task(drive())
    task.add_done_callback(lambda _: end())  # also if it is cancelled before its first step, as its loop ends
    return task
