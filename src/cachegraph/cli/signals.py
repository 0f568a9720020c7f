"""Ctrl-C, SIGTERM and SIGHUP end a command alike: runs are recorded, programs ended, and an exit code told."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from typer.core import TyperGroup

from .output import echo

__all__ = ["Commands", "Stopped", "Told", "catch_signals", "end_stopped", "exit_code"]

_number = signal.SIGINT  # of the signal that stops the command


class Told(KeyboardInterrupt):
    """The command was stopped, and whoever did it has been told so."""


class Stopped(Exception):
    """A KeyboardInterrupt on its way through typer, which would end the program without a word."""


class Commands(TyperGroup):
    """All commands; lets `main` see that one was stopped."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped from error


def catch_signals() -> None:
    """Have SIGTERM and SIGHUP do what Ctrl-C does, unless they are ignored, as under nohup."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def exit_code() -> int:
    """128 and the signal's number: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + _number


def end_stopped(error: BaseException | None) -> NoReturn:
    """End the program at once. A model that is still being loaded in another thread is not waited for."""
    if not isinstance(error, Told):
        with suppress(OSError, ValueError):  # the terminal may be gone
            echo("cachegraph: interrupted", err=True)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code())


def _stop(number: int, _frame: FrameType | None) -> None:
    global _number
    _number = signal.Signals(number)
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):  # as of a shell's background job
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)
