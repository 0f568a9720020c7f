"""A run that is watched while it goes on.

The run lives in a task of its own, not in the generator that hands out its events: so a loop over events can be left
at any point, in any task, and the run is cancelled and cleaned up all the same.
"""

import asyncio
import math
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from types import TracebackType
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from .events import Event
from .result import Result
from .runtime import Listener, Run

__all__ = ["RunStream"]


class RunStream:
    """The events of one run, as an async iterator; the run begins with the first step.

    After the last event a failed run raises its error. Leaving the loop early cancels the run; `async with` around the
    loop also waits until it has let go of everything. `result` may be read at any time.
    """

    def __init__(self, start: Callable[[Listener], Run]):
        feed = _Feed()
        self._run = start(feed)
        self._events = _events(self._run, feed)

    @property
    def result(self) -> Result:
        """What is known by now: partial while the run goes on, whole when it has ended."""
        return self._run.result

    def __aiter__(self) -> "RunStream":
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Cancel the run if it still goes on, and wait until it has freed everything."""
        await self._events.aclose()

    async def __aenter__(self) -> "RunStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Feed:
    """A run's listener: puts its events where the reader takes them, until the reader has left."""

    stream: MemoryObjectSendStream[Event]

    def __call__(self, event: Event) -> None:
        with suppress(anyio.BrokenResourceError):  # the reader left; what still comes is the run's own end
            self.stream.send_nowait(event)


async def _events(run: Run, feed: _Feed) -> AsyncGenerator[Event, None]:
    feed.stream, receive = anyio.create_memory_object_stream[Event](math.inf)
    scope, ended = anyio.CancelScope(), anyio.Event()
    errors: list[Exception] = []

    async def drive() -> None:
        try:
            with scope:
                await run.execute()
        except Exception as error:
            errors.append(error)
        finally:
            feed.stream.close()
            ended.set()

    task = _detach(drive)  # a name for it, or asyncio lets it be collected
    try:
        with receive:
            async for event in receive:
                yield event
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
