"""Cancel work when the client disconnects."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.types import Receive

__all__ = ["ClientGone", "watch", "while_connected"]

T = TypeVar("T")


class ClientGone(Exception):
    """The client has disconnected, so no response is needed."""


async def watch(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel the scope when the client disconnects. Read the request's body first."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def while_connected(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """Return the work's result. If the client disconnects first, cancel the work and raise ClientGone."""
    done: list[T] = []
    failed: list[Exception] = []
    async with anyio.create_task_group() as group:
        group.start_soon(watch, receive, group.cancel_scope)
        try:
            done.append(await work())
        except Exception as error:  # raised without an exception group
            failed.append(error)
        group.cancel_scope.cancel()
    if failed:
        raise failed[0]
    if not done:
        raise ClientGone
    return done[0]
