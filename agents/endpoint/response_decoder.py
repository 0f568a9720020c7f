"""Decode a response's bytes to events. The bytes decide the format, since content types are often wrong.

The body may be an event stream, one JSON object, or one JSON object per line, plain or compressed without request.
"""

import json
import re
import zlib
from collections.abc import Iterator

from .sse_decoder import BOM, MAX_EVENT, EventDecoder, EventTooLong, ServerSentEvent

__all__ = ["MAX_ANSWER", "AnswerDecoder", "Inflater", "NotAnAnswer"]

MAX_ANSWER = 1 << 26  # bytes of a whole stream
_PIECE = 1 << 16  # bytes decompressed at a time
_FIELD = re.compile(rb"(?:data|event|id|retry|error)\s*:|:")


class NotAnAnswer(Exception):
    """The body is neither an event stream nor JSON."""


class Inflater:
    """Decompresses a Content-Encoding in pieces of bounded size. Raises zlib.error."""

    def __init__(self, encoding: str):
        self._gzip = encoding in ("gzip", "x-gzip")
        self._stream = None if encoding in ("", "identity") else self._start(encoding == "deflate")

    def _start(self, deflate: bool = False) -> "zlib._Decompress":
        # 47: gzip or zlib, detected from the header.
        return zlib.decompressobj(zlib.MAX_WBITS if deflate else 47)

    @staticmethod
    def knows(encoding: str) -> bool:
        """Whether bodies of this encoding can be decompressed."""
        return encoding in ("", "identity", "gzip", "x-gzip", "deflate")

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the pieces of a chunk."""
        if self._stream is None:
            yield chunk
            return
        rest = chunk
        while rest:
            if self._stream.eof:
                if not self._gzip:
                    return
                self._stream = self._start()  # gzip members may follow each other
            if piece := self._stream.decompress(rest, _PIECE):
                yield piece
            rest = self._stream.unconsumed_tail or self._stream.unused_data


class AnswerDecoder:
    """Decodes chunks to events. Raises EventTooLong, or NotAnAnswer as soon as the format is known."""

    def __init__(self) -> None:
        self._head = bytearray()  # until the format is known
        self._events: EventDecoder | None = None
        self._json = False
        self._size = 0

    @property
    def whole(self) -> bool:
        """Whether the body is JSON, parsed at its end, rather than a stream."""
        return self._json

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Return the events that end in this chunk."""
        self._size += len(chunk)
        if self._size > MAX_ANSWER:
            raise EventTooLong
        if self._events is not None:
            return self._events.feed(chunk)
        self._head += chunk
        if self._json:
            if len(self._head) > MAX_EVENT:
                raise EventTooLong
            return []
        return self._recognize()

    def close(self) -> list[ServerSentEvent]:
        """Return the events that the end of the body completes."""
        if self._json:
            return _of_json(self._head.removeprefix(BOM).decode("utf-8", "replace"))
        if self._events is None:
            if self._head.removeprefix(BOM).strip():
                raise NotAnAnswer
            return []
        return self._events.close()

    def _recognize(self) -> list[ServerSentEvent]:
        head = bytes(self._head.removeprefix(BOM).lstrip())
        if head[:1] in (b"{", b"["):
            self._json = True
            return []
        if _FIELD.match(head):
            self._events = EventDecoder()
            return self._events.feed(bytes(self._head.lstrip()))
        if len(head) > 10 or head[:1] == b"<":
            raise NotAnAnswer
        return []


def _of_json(text: str) -> list[ServerSentEvent]:
    """One event for a JSON text, or one per line if each line is a JSON text."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return [ServerSentEvent(line) for line in lines]
    return [ServerSentEvent(text)]
