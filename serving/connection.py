"""Work for a client that may go away: what it asked for is cancelled then."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.types import Receive

__all__ = ["ClientGone", "watch", "while_connected"]

T = TypeVar("T")


class ClientGone(Exception):
    """The client has left, so nobody needs an answer."""


async def watch(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel the scope when the client leaves. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def while_connected(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """What the work gives. Raises ClientGone where the client leaves before; the work is cancelled then."""
    done: list[T] = []
    failed: list[Exception] = []
    async with anyio.create_task_group() as group:
        group.start_soon(watch, receive, group.cancel_scope)
        try:
            done.append(await work())
        except Exception as error:  # bare, and not in an exception group
            failed.append(error)
        group.cancel_scope.cancel()
    if failed:
        raise failed[0]
    if not done:
        raise ClientGone
    return done[0]
