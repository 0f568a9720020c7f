"""Run requests concurrently and return results in order, with a progress bar."""

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
    """Await `before`, then `work` for all items, `limit` at a time. The first error cancels the rest and is raised.

    The event loop runs in its own thread, so this works in a notebook too, and Ctrl-C stops it.
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
