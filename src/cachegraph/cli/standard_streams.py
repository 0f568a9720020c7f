"""Standard streams and files that may be closed, full or not UTF-8.

A run does not fail because its output can't be written. The error is stored and reported at the command's end.
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
    """Writes to a text stream until a write fails, and stores the reason in `trouble`. None: a closed stream."""

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
        self._attempt(lambda stream: stream.flush())
        if self._stream is not None:
            with suppress(OSError, ValueError):  # what is left in its buffer, of which `trouble` says why
                self._stream.close()
        self._stream = None

    def _attempt(self, act: Callable[[IO[str]], Any]) -> None:
        if self._stream is None or self.trouble is not None:
            return
        try:
            act(self._stream)
        except (OSError, ValueError) as error:  # full, its reader gone, or closed meanwhile
            self.trouble = getattr(error, "strerror", None) or str(error)
            self._failed(error)

    def _failed(self, error: OSError | ValueError) -> None:
        """Called once, with the error of the first write that fails."""

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
        if self._stream is None:
            self.trouble = "it is closed"
        return cast("IO[bytes]", getattr(self._stream, "buffer", None) or io.BytesIO())


class _StandardOutput(TolerantStream):
    """Raises BrokenPipeError once if its reader is gone, which ends the command: nobody waits for its output."""

    def _failed(self, error: OSError | ValueError) -> None:
        if isinstance(error, BrokenPipeError):
            raise error


@contextmanager
def standard_streams() -> Iterator[None]:
    """Inside the block, stdout and stderr accept every character, and writes fail only if stdout's reader is gone."""
    kept = sys.stdout, sys.stderr
    for stream in kept:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    tolerant = _StandardOutput(kept[0]), TolerantStream(kept[1])
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
    """Raise CachegraphError at the end of the block if not all output reached stdout."""
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
        raise CachegraphError(f"the output can't be written: {trouble}; send it elsewhere")


def _discard(stream: IO[str]) -> None:
    """Redirect the rest of a stream's buffer to os.devnull, so that Python's exit does not fail on it."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
