"""The HTTP protocol of a connection: closes clients that send no whole request, and those beyond a number."""

import asyncio
import sys
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["BoundedProtocol"]

SPARE = 256  # descriptors for models, the store and endpoints
LARGEST = 20_000


def _most_connections() -> int:
    """Return how many connections leave the process enough descriptors."""
    if sys.platform == "win32":
        return LARGEST
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return LARGEST if limit == resource.RLIM_INFINITY else min(max(limit - SPARE, limit // 2), LARGEST)


class BoundedProtocol(H11Protocol):
    """Uvicorn's protocol, with a bound on the time that the line and headers of a request may take.

    The bound also ends connections that continue to send a body after its response.
    """

    header_seconds = 30.0
    most_connections = _most_connections()
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the timer if no request is at work, and end it if one is."""
        if not self._waits():
            self._stop()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.header_seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._waits():
            self.transport.close()

    def _waits(self) -> bool:
        cycle: Any = self.cycle
        return cycle is None or bool(cycle.response_complete)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
