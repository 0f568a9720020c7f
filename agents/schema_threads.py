"""Run JSON Schema checks without blocking the event loop: short ones inline, long ones in a thread."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from cachegraph.common.abandoned_threads import run_or_abandon
from cachegraph.common.schemas import CheckGroup, TooMuchWork

__all__ = ["run_checks"]

T = TypeVar("T")

FEW_STEPS = 2_000  # of all checks in one call: less than 10 ms
FEW_CHARACTERS = 50_000
THREADS = 2  # they hold the interpreter's lock: more threads would only starve the event loop
_LIMITER: RunVar[anyio.CapacityLimiter] = RunVar("schema_threads")


async def run_checks(work: Callable[[], T], characters: int = 0) -> T:
    """Return or raise what `work` does. It must only check values, since it may run twice.

    `characters` is the length of the text parsed before the checks. Cancelling the caller stops the check.
    """
    if characters <= FEW_CHARACTERS:
        try:
            return _within(CheckGroup(FEW_STEPS), work)
        except TooMuchWork:
            pass
    group = CheckGroup()
    try:
        return await run_or_abandon(partial(_within, group, work), limiter=_limiter())
    except anyio.get_cancelled_exc_class():
        group.stop()
        raise


def _within(group: CheckGroup, work: Callable[[], T]) -> T:
    with group.granting():
        return work()


def _limiter() -> anyio.CapacityLimiter:
    try:
        return _LIMITER.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(THREADS)
        _LIMITER.set(limiter)
        return limiter
