"""Decode server-sent events from arbitrary chunks of bytes, in bounded memory."""

import re
from typing import NamedTuple

__all__ = ["BOM", "MAX_EVENT", "EventDecoder", "EventTooLong", "ServerSentEvent"]

MAX_EVENT = 1 << 24  # bytes: some servers send a whole reply as one event
BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLong(Exception):
    """An event is longer than MAX_EVENT."""


class ServerSentEvent(NamedTuple):
    """An event: its data, and the name from an `event:` line."""

    data: str
    name: str = ""
    cut: bool = False  # the stream ended inside it


class EventDecoder:
    """Decodes chunks to complete events. Lines end with LF, CR or CRLF; a BOM may come first.

    Two deviations from the standard become events, too: llama.cpp sends errors in a field `error`, and some gateways
    send a bare JSON object between events.
    """

    def __init__(self) -> None:
        self._rest = bytearray()  # an incomplete line
        self._first = True  # no line has been read yet
        self._data: list[bytes] = []
        self._name = ""
        self._size = 0

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Return the events that end in this chunk. Raises EventTooLong."""
        out: list[ServerSentEvent] = []
        start = max(len(self._rest) - 1, 0)  # a CR at the end of the last chunk may have been half a CRLF
        self._rest += chunk
        begin = 0
        for end in _LINE_END.finditer(self._rest, start):
            if end.group() == b"\r" and end.end() == len(self._rest):
                break  # its LF may follow
            self._line(bytes(self._rest[begin : end.start()]), out)
            begin = end.end()
        del self._rest[:begin]
        if len(self._rest) + self._size > MAX_EVENT:
            raise EventTooLong
        return out

    def close(self) -> list[ServerSentEvent]:
        """Return the last events of a stream, whose last line ends may be missing."""
        out: list[ServerSentEvent] = []
        cut = bool(self._rest) and not self._rest.endswith(b"\r")
        self._line(bytes(self._rest).removesuffix(b"\r"), out)
        self._line(b"", out)
        self._rest.clear()
        return [event._replace(cut=cut) for event in out]

    def _line(self, line: bytes, out: list[ServerSentEvent]) -> None:
        if self._first:
            line, self._first = line.removeprefix(BOM), False
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            self._dispatch(out)
        elif name == b"data":
            self._data.append(value)
            self._size += len(line)
        elif name == b"event":
            self._name = value[:100].decode("utf-8", "replace")
        elif name == b"error":
            self._dispatch(out)
            out.append(ServerSentEvent(value.decode("utf-8", "replace"), "error"))
        elif line.lstrip().startswith(b"{"):
            self._dispatch(out)
            out.append(ServerSentEvent(line.decode("utf-8", "replace")))

    def _dispatch(self, out: list[ServerSentEvent]) -> None:
        if self._data:
            out.append(ServerSentEvent(b"\n".join(self._data).decode("utf-8", "replace"), self._name))
        self._data.clear()
        self._name = ""
        self._size = 0
