"""Server-sent events: a response that streams during the work and cancels it when the client disconnects."""

import math
from collections.abc import Awaitable, Callable, Iterable

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .connection import watch

__all__ = ["Emit", "EventStream", "event"]

PATIENCE = 5.0  # seconds without an event before the response starts anyway
PING = 15.0  # seconds of silence before a comment keeps the connection open

Emit = Callable[[bytes], None]


def event(data: str, name: str | None = None, number: int | None = None) -> bytes:
    """Encode one event. `data` is JSON without line breaks."""
    head = (f"id: {number}\n" if number is not None else "") + (f"event: {name}\n" if name else "")
    return f"{head}data: {data}\n\n".encode()


class EventStream(Response):
    """Sends what `produce` emits.

    An error before the first emission becomes a response, by `refuse`; a later one becomes events, by `complain`.
    """

    def __init__(
        self,
        produce: Callable[[Emit], Awaitable[None]],
        refuse: Callable[[Exception], Response],
        complain: Callable[[Exception], Iterable[bytes]],
    ):
        super().__init__(media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._produce, self._refuse, self._complain = produce, refuse, complain
        self._error: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        feed, items = anyio.create_memory_object_stream[bytes](math.inf)
        async with anyio.create_task_group() as group:
            group.start_soon(watch, receive, group.cancel_scope)
            group.start_soon(self._work, feed)
            with items:
                await self._send_all(items, scope, receive, send)
            group.cancel_scope.cancel()

    async def _work(self, feed: MemoryObjectSendStream[bytes]) -> None:
        with feed:
            try:
                await self._produce(feed.send_nowait)
            except Exception as error:  # reported to the client
                self._error = error

    async def _send_all(
        self, items: MemoryObjectReceiveStream[bytes], scope: Scope, receive: Receive, send: Send
    ) -> None:
        first = await _next(items, PATIENCE)
        if first is None and self._error is not None:
            await self._refuse(self._error)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        piece = first
        while piece is not None:
            if piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await _next(items, PING)
            if piece == b"":
                piece = b": waiting\n\n"
        for last in self._complain(self._error) if self._error is not None else ():
            await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _next(items: MemoryObjectReceiveStream[bytes], patience: float) -> bytes | None:
    """Return the next pieces, all that are there; empty on timeout, None at the end."""
    pieces = b""
    try:
        with anyio.move_on_after(patience):
            pieces = await items.receive()
            while True:
                pieces += items.receive_nowait()
    except anyio.WouldBlock:
        pass
    except anyio.EndOfStream:
        return pieces or None
    return pieces
