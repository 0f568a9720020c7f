"""Run work in a thread that a cancelled caller leaves behind. Its error is dropped at once, under every event loop."""

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread

__all__ = ["run_or_abandon"]

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
