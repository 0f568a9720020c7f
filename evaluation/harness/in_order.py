"""Many requests at once, their results in order, with a bar for whoever waits."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from anyio.from_thread import start_blocking_portal
from tqdm import tqdm

from cachegraph.common.run_all import run_all

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

        async def one(item: A) -> B:
            result = await work(item)
            bar.update()
            return result

        async def run() -> list[B]:
            await before()
            return await run_all([partial(one, item) for item in items], limit)

        return portal.call(run)
