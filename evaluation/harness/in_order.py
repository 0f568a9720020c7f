"""Many requests at once, their results in order, with a bar for whoever waits."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
from anyio.from_thread import start_blocking_portal
from tqdm import tqdm

__all__ = ["gather"]

A = TypeVar("A")
B = TypeVar("B")


def gather(
    work: Callable[[A], Awaitable[B]],
    items: Sequence[A],
    *,
    limit: int,
    title: str,
    quiet: bool,
    before: Callable[[], Awaitable[None]],
) -> list[B]:
    """Do it for all items, `limit` at a time, after `before`. The first error ends all of it and is raised.

    The loop is in a thread of its own, so this also works in a notebook, and Ctrl-C ends it.
    """
    with start_blocking_portal() as portal, tqdm(total=len(items), desc=title, disable=quiet) as bar:

        async def run() -> list[B]:
            await before()
            return await _gather(work, items, limit, lambda: bar.update())

        return portal.call(run)


async def _gather(
    work: Callable[[A], Awaitable[B]], items: Sequence[A], limit: int, tell: Callable[[], object]
) -> list[B]:
    waiting = iter(enumerate(items))
    done: dict[int, B] = {}
    fatal: list[Exception] = []

    async def serve() -> None:
        try:
            for index, item in waiting:
                done[index] = await work(item)
                tell()
        except Exception as error:  # raised below, without the group around it
            fatal.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for _ in range(min(limit, len(items))):
            group.start_soon(serve)
    if fatal:
        raise fatal[0]
    return [done[index] for index in range(len(items))]
