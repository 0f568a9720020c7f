"""Treat SIGTERM and SIGHUP as Ctrl-C; the exit code of a stopped process."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["catch_signals", "exit_code", "flush_streams", "handling_signals"]

_number = signal.SIGINT  # the signal that stops the process


def catch_signals() -> None:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt like Ctrl-C, unless they are ignored, as under nohup."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


@contextmanager
def handling_signals(handle: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call `handle` for these signals in this block instead of interrupting, unless they are ignored."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        global _number
        _number = signal.Signals(number)
        handle(_number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number in numbers if before[number] is not signal.SIG_IGN]
    try:
        for number in handled:
            signal.signal(number, on_signal)
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


def exit_code() -> int:
    """Return 128 plus the signal number: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + _number


def flush_streams() -> None:
    """Flush stdout and stderr, even if they are closed or their reader has gone."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()


def _stop(number: int, _frame: FrameType | None) -> None:
    global _number
    _number = signal.Signals(number)
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):  # as in a shell's background job
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)
