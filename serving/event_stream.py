"""Server-sent events: a response that streams during the work and cancels it when the client disconnects."""

import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .connection import watch

__all__ = ["Emit", "EventStream", "PacedEventStream", "event"]

PATIENCE = 5.0  # seconds without an event before the response starts anyway
PING = 15.0  # seconds of silence before a comment keeps the connection open

AHEAD = 64  # pieces that a paced stream reads before its client takes them

Emit = Callable[[bytes], None]
Refuse = Callable[[Exception], Response]
Complain = Callable[[Exception], Iterable[bytes]]
Feed = MemoryObjectSendStream[bytes]


def event(data: str, name: str | None = None, number: int | None = None) -> bytes:
    """Encode one event. `data` is JSON without line breaks."""
    head = (f"id: {number}\n" if number is not None else "") + (f"event: {name}\n" if name else "")
    return f"{head}data: {data}\n\n".encode()


class _Events(Response, ABC):
    """Sends what `_fill` feeds.

    An error before the first piece becomes a response, by `refuse`; a later one becomes events, by `complain`.
    """

    _ahead: float  # pieces that wait for the client

    def __init__(self, refuse: Refuse, complain: Complain):
        super().__init__(media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._refuse, self._complain = refuse, complain
        self._error: Exception | None = None

    @abstractmethod
    async def _fill(self, feed: Feed) -> None: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        feed, items = anyio.create_memory_object_stream[bytes](self._ahead)
        async with anyio.create_task_group() as group:
            group.start_soon(watch, receive, group.cancel_scope)
            group.start_soon(self._work, feed)
            with items:
                await self._send_all(items, scope, receive, send)
            group.cancel_scope.cancel()

    async def _work(self, feed: Feed) -> None:
        with feed:
            try:
                await self._fill(feed)
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


class EventStream(_Events):
    """Sends what `produce` emits. A client that reads slowly does not slow it down."""

    _ahead = math.inf

    def __init__(self, produce: Callable[[Emit], Awaitable[None]], refuse: Refuse, complain: Complain):
        super().__init__(refuse, complain)
        self._produce = produce

    async def _fill(self, feed: Feed) -> None:
        await self._produce(feed.send_nowait)


class PacedEventStream(_Events):
    """Sends the pieces of an iterator, which waits for a client that reads slowly."""

    _ahead = AHEAD

    def __init__(self, pieces: AsyncGenerator[bytes, None], refuse: Refuse, complain: Complain):
        super().__init__(refuse, complain)
        self._pieces = pieces

    async def _fill(self, feed: Feed) -> None:
        async with aclosing(self._pieces):
            async for piece in self._pieces:
                await feed.send(piece)


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
