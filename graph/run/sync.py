"""Run async work from synchronous code."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio

from cachegraph.errors import InputError

from .result import Interrupted

__all__ = ["wait"]

T = TypeVar("T")


def wait(work: Callable[[], Coroutine[Any, Any, T]], name: str, instead: str, partial: Callable[[], Any]) -> T:
    """Run it in a new event loop. On Ctrl-C, free all resources, then raise Interrupted with `partial()`.

    Raises InputError where an event loop runs already.
    """
    if _in_event_loop():
        raise InputError(
            f"{name}() can't wait where an event loop runs already, as in a notebook; use `await {instead}(...)`"
        )
    done: list[T] = []

    async def main() -> None:  # returns None: at the end asyncio formats the return value, however large
        done.append(await work())

    try:
        anyio.run(main)
        return done[0]
    except KeyboardInterrupt:
        raise Interrupted(partial()) from None


def _in_event_loop() -> bool:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return True
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
