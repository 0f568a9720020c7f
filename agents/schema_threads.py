"""Checks by JSON Schemas that keep nobody waiting: short ones at once, long ones in a thread."""

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from cachegraph.common.schemas import CheckGroup, TooMuchWork

__all__ = ["run_checks"]

T = TypeVar("T")

FEW_STEPS = 2_000  # of all checks of one call together: less than 10 ms
FEW_CHARACTERS = 50_000
THREADS = 2  # they work under the interpreter's lock: more threads would only keep the event loop from it
_LIMITER: RunVar[anyio.CapacityLimiter] = RunVar("schema_threads")


async def run_checks(work: Callable[[], T], characters: int = 0) -> T:
    """What `work` gives or raises, which checks values and nothing else, since it may be done twice.

    `characters`: of the text that is read before the checks. A cancelled caller leaves at once, and the check stops.
    """
    if characters <= FEW_CHARACTERS:
        try:
            return _within(CheckGroup(FEW_STEPS), work)
        except TooMuchWork:
            pass
    group = CheckGroup()
    try:
        return await anyio.to_thread.run_sync(_within, group, work, abandon_on_cancel=True, limiter=_limiter())
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
