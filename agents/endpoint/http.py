"""HTTP details of a response: TLS, compression, unread bodies, and retry delays."""

import math
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING

import anyio

from .response_decoder import Inflater

if TYPE_CHECKING:
    import httpx2

__all__ = ["encoding_of", "knows_encoding", "pieces_of", "read_start", "retry_after"]


def encoding_of(response: "httpx2.Response") -> str:
    """The body's compression, as the server declares it."""
    encoding: str = response.headers.get("content-encoding", "")
    return encoding.strip().lower()


def knows_encoding(response: "httpx2.Response") -> bool:
    """Whether the body's compression is supported."""
    return Inflater.knows(encoding_of(response))


@asynccontextmanager
async def pieces_of(response: "httpx2.Response") -> AsyncIterator[AsyncIterator[bytes]]:
    """Stream a response that may be left unread: the client's nested generators are closed, not abandoned."""
    import httpx2

    chunks = response.aiter_raw()
    inflater = Inflater(encoding_of(response))

    async def inflated() -> AsyncGenerator[bytes]:
        async for chunk in chunks:
            for piece in inflater.feed(chunk):
                yield piece

    pieces = inflated()
    try:
        yield pieces
    finally:
        await pieces.aclose()
        await response.aclose()
        with suppress(httpx2.HTTPError, httpx2.StreamError, anyio.ClosedResourceError):
            async for _ in chunks:
                pass


async def read_start(response: "httpx2.Response", most: int) -> str:
    """Read the start of a body, up to the first data that can't be decompressed."""
    parts: list[bytes] = []
    size = 0
    if not knows_encoding(response):
        return ""
    with suppress(zlib.error):
        async with pieces_of(response) as pieces:
            async for piece in pieces:
                parts.append(piece)
                size += len(piece)
                if size > most:
                    break
    return b"".join(parts)[:most].decode("utf-8", "replace")


def retry_after(headers: "httpx2.Headers") -> float | None:
    """The seconds that a server asks to wait: a number, a date, or the milliseconds of OpenAI and Azure."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(ValueError):
            if math.isfinite(seconds := float(headers.get(name, "")) * unit):
                return max(seconds, 0.0)
    with suppress(ValueError, TypeError, OverflowError, OSError):
        return max(parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time(), 0.0)
    return None
