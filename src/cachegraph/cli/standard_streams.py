"""Standard streams and files that may be closed, full or of another encoding than UTF-8.

A run is not lost because its output is: what can't be written is remembered, and said at the command's end.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from cachegraph.errors import CachegraphError

__all__ = ["TolerantStream", "complete_output", "standard_streams"]


class TolerantStream:
    """Writes to a text stream until that fails, and then remembers why in `trouble`. None: it was closed before."""

    def __init__(self, stream: IO[str] | None):
        self._stream = stream
        self.trouble: str | None = None

    def write(self, text: str) -> int:
        if self._stream is None:
            self.trouble = "it is closed"
        self._attempt(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(lambda stream: stream.flush())

    def close(self) -> None:
        self._attempt(lambda stream: stream.close())
        self._stream = None

    def _attempt(self, act: Callable[[IO[str]], Any]) -> None:
        if self._stream is None or self.trouble is not None:
            return
        try:
            act(self._stream)
        except BrokenPipeError:  # the reader has left: the command ends at once
            raise
        except (OSError, ValueError) as error:  # full, or closed under our hands
            self.trouble = getattr(error, "strerror", None) or str(error)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def buffer(self) -> IO[bytes]:
        return cast("IO[bytes]", getattr(self._stream, "buffer", None) or io.BytesIO())


@contextmanager
def standard_streams() -> Iterator[None]:
    """Inside, stdout and stderr take every character and never fail, however they were opened."""
    kept = sys.stdout, sys.stderr
    for stream in kept:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    tolerant = TolerantStream(kept[0]), TolerantStream(kept[1])
    sys.stdout, sys.stderr = cast("Any", tolerant[0]), cast("Any", tolerant[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = kept
        for stream, wrapper in zip(kept, tolerant, strict=True):
            if stream is not None and wrapper.trouble is not None:
                _discard(stream)


@contextmanager
def complete_output() -> Iterator[None]:
    """Raises CachegraphError at the end where not all that was printed inside could be written to stdout."""
    try:
        yield
    except SystemExit as ended:
        if ended.code in (0, None):
            _check()
        raise
    _check()


def _check() -> None:
    sys.stdout.flush()
    trouble = getattr(sys.stdout, "trouble", None)
    if trouble is not None:
        raise CachegraphError(f"the output can't be written: {trouble}; send it to another place")


def _discard(stream: IO[str]) -> None:
    """Let what is left in a stream's buffer go nowhere, or Python would complain of it as it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
