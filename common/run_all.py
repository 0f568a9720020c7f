"""Run async calls concurrently: results in order, the first error unchanged."""

from collections.abc import Awaitable, Callable, Sequence
from traceback import clear_frames
from typing import TypeVar

import anyio

__all__ = ["run_all"]

T = TypeVar("T")


async def run_all(
    calls: Sequence[Callable[[], Awaitable[T]]], max_concurrent: int | None = None, name: object = None
) -> list[T]:
    """Return the calls' results in order. The first error cancels the other calls and is raised.

    At most `max_concurrent` calls run concurrently; `name` names their tasks, for debuggers.
    """
    results: dict[int, T] = {}
    errors: list[Exception] = []
    waiting = iter(enumerate(calls))  # shared: each worker takes the next untaken call

    async def work() -> None:
        try:
            for index, call in waiting:
                results[index] = await call()
        except Exception as error:  # raised below, without an exception group
            errors.append(error)
            group.cancel_scope.cancel()
        except BaseException as error:  # cancelled; asyncio keeps the error, and with it what its frames hold
            clear_frames(error.__traceback__)
            raise

    async with anyio.create_task_group() as group:
        for _ in range(min(len(calls), max_concurrent or len(calls))):
            group.start_soon(work, name=name)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(calls))]
