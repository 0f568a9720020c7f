"""Run async calls at the same time: results in order, the first error as it is."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

__all__ = ["run_all"]

T = TypeVar("T")


async def run_all(
    calls: Sequence[Callable[[], Awaitable[T]]], max_concurrent: int | None = None, name: object = None
) -> list[T]:
    """The calls' results in their order. The first call that fails cancels the others, and its error is raised.

    At most `max_concurrent` calls run at the same time; `name` is that of their tasks, for debuggers.
    """
    results: dict[int, T] = {}
    errors: list[Exception] = []
    waiting = iter(enumerate(calls))  # shared: each worker takes the next call that none has taken

    async def work() -> None:
        try:
            for index, call in waiting:
                results[index] = await call()
        except Exception as error:  # raised below, without the group around it
            errors.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for _ in range(min(len(calls), max_concurrent or len(calls))):
            group.start_soon(work, name=name)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(calls))]
