"""Render and tokenize in threads, so that a text never blocks timeouts, Ctrl-C or other runs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from cachegraph.common.abandoned_threads import run_or_abandon
from cachegraph.common.template_budget import ALLOWANCE, Allowance

from .expression import Expression

__all__ = ["TextWork", "evaluate_in_thread"]

T = TypeVar("T")

THREADS = 16  # at once; functions and files, which may block for long, use other threads
_LIMITER: RunVar[anyio.CapacityLimiter] = RunVar("text_work")


class TextWork:
    """The text work of one turn. All its renders share one limit in seconds."""

    def __init__(self) -> None:
        self._allowance = Allowance()

    async def run(self, work: Callable[[], T]) -> T:
        """Return or raise what `work` does. A cancelled caller returns at once, and a running template is stopped."""
        try:
            return await run_or_abandon(partial(self._within, work), limiter=_limiter())
        except anyio.get_cancelled_exc_class():
            self._allowance.stop()
            raise

    def _within(self, work: Callable[[], T]) -> T:
        token = ALLOWANCE.set(self._allowance)
        try:
            return work()
        finally:
            ALLOWANCE.reset(token)


async def evaluate_in_thread(expression: Expression, values: Mapping[str, Any]) -> Any:
    """Evaluate an expression without blocking the event loop. Raises TemplateProblem."""
    if expression.bounded:
        return expression.evaluate(values)
    return await TextWork().run(lambda: expression.evaluate(values))


def _limiter() -> anyio.CapacityLimiter:
    try:
        return _LIMITER.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(THREADS)
        _LIMITER.set(limiter)
        return limiter
