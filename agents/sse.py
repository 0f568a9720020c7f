"""Server-sent events out of chunks of bytes, however the network cut them. Only their data; bounded in memory."""

__all__ = ["EventDecoder", "EventTooLong"]

MAX_EVENT = 1 << 20  # bytes


class EventTooLong(Exception):
    """An event that does not end."""


class EventDecoder:
    """Fed with chunks, gives the data of each event that has become complete."""

    def __init__(self) -> None:
        self._rest = bytearray()  # a line without its end
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[str]:
        """The data of the events that end in this chunk. Raises EventTooLong."""
        lines = chunk.split(b"\n")
        self._rest += lines[0]
        out: list[str] = []
        for i in range(1, len(lines)):
            self._line(bytes(self._rest).removesuffix(b"\r"), out)
            self._rest = bytearray(lines[i])
        if len(self._rest) + self._size > MAX_EVENT:
            raise EventTooLong
        return out

    def close(self) -> list[str]:
        """What the stream ended with, where its last event lacks the empty line."""
        out: list[str] = []
        self._line(bytes(self._rest).removesuffix(b"\r"), out)
        self._line(b"", out)
        return out

    def _line(self, line: bytes, out: list[str]) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._size += len(line)
        elif not line and self._data:
            out.append(b"\n".join(self._data).decode("utf-8", "replace"))
            self._data.clear()
            self._size = 0
