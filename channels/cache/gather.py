"""Several requests under way at once: to the engines of a receiver and of its sharers, each on a device of its own."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

__all__ = ["gather"]


async def gather(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What they give, in their order. The first that fails ends the others, and its error is raised as it is."""
    results: list[Any] = [None] * len(calls)
    failed: list[Exception] = []

    async def run(index: int, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            results[index] = await call()
        except Exception as error:  # raised below, instead of a group of one
            failed.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for index, call in enumerate(calls):
            group.start_soon(run, index, call)
    if failed:
        raise failed[0]
    return results
