"""Run work in a thread that a cancelled caller leaves behind.

Its error is dropped at once, under every event loop, and what it has acquired is released.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

import anyio
import anyio.to_thread

__all__ = ["acquire_in_thread", "run_or_abandon"]

T = TypeVar("T")


async def run_or_abandon(work: Callable[[], T], *, limiter: anyio.CapacityLimiter | None = None) -> T:
    """Return or raise what `work` does. A cancelled caller returns at once, and the thread ends by itself.

    Nobody reads the error of an abandoned thread, so it stays in the thread: trio would keep it, and with it the
    locals of all its frames, until Python's collector finds them.
    """
    left = threading.Event()
    try:
        return await anyio.to_thread.run_sync(
            partial(_unless_left, work, left), abandon_on_cancel=True, limiter=limiter
        )
    except anyio.get_cancelled_exc_class():
        left.set()
        raise


def _unless_left(work: Callable[[], T], left: threading.Event) -> T:
    try:
        return work()
    except BaseException:
        if left.is_set():
            return None  # type: ignore[return-value]  # to nobody
        raise


async def acquire_in_thread(acquire: Callable[[], T], release: Callable[[T], object], *, abandon: bool = False) -> T:
    """Return what `acquire` returns. If the caller is cancelled, `release` gets it instead, once the thread has it.

    asyncio's own cancellation (`asyncio.wait_for`, `Task.cancel`) leaves every thread behind. That of anyio and trio
    waits for the thread, unless `abandon`.
    """
    acquisition = _Acquisition(acquire, release)
    try:
        if abandon:
            return await run_or_abandon(acquisition.run)
        return await anyio.to_thread.run_sync(acquisition.run)
    except BaseException:
        acquisition.leave()
        raise


class _Acquisition(Generic[T]):
    """What a thread acquires, released if the caller has left."""

    def __init__(self, acquire: Callable[[], T], release: Callable[[T], object]):
        self._acquire, self._release = acquire, release
        self._acquired: list[T] = []
        self._left = False
        self._lock = threading.Lock()  # protects both

    def run(self) -> T:
        acquired = self._acquire()
        with self._lock:
            self._acquired.append(acquired)
            left = self._left
        if left:
            self._release(acquired)
        return acquired

    def leave(self) -> None:
        with self._lock:
            acquired, self._acquired, self._left = self._acquired, [], True
        for resource in acquired:
            self._release(resource)
