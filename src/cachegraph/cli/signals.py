"""The end of a command that Ctrl-C, SIGTERM or SIGHUP stops."""

import os
from contextlib import suppress
from typing import Any, NoReturn

from typer.core import TyperGroup

from cachegraph.common.stop_signals import exit_code, flush_streams

from .output import echo

__all__ = ["Commands", "ReportedStop", "Stopped", "end_stopped"]


class ReportedStop(KeyboardInterrupt):
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


def end_stopped(error: BaseException | None) -> NoReturn:
    """End the program at once. A model that is still being loaded in another thread is not waited for."""
    if not isinstance(error, ReportedStop):
        with suppress(OSError, ValueError):  # the terminal may be gone
            echo("cachegraph: interrupted", err=True)
    flush_streams()
    os._exit(exit_code())
