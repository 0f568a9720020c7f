"""The end of a command that Ctrl-C, SIGTERM or SIGHUP stops."""

import os
from contextlib import suppress
from typing import Any, NoReturn

from typer.core import TyperGroup

from cachegraph.common.stop_signals import exit_code, flush_streams

from .output import echo

__all__ = ["Commands", "ReportedStop", "Stopped", "end_stopped"]


class ReportedStop(KeyboardInterrupt):
    """The command was stopped, and the user has been told so."""


class Stopped(Exception):
    """Carries a KeyboardInterrupt through typer, which would otherwise end the program silently."""


class Commands(TyperGroup):
    """The group of all commands, which passes KeyboardInterrupt on to `main`.

    Its own options, such as --version, are of one call: no variable turns them on. Images and build scripts often
    set CACHEGRAPH_VERSION for purposes of their own.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        for each in params:
            each.allow_from_autoenv = each.show_envvar = False  # type: ignore[attr-defined]  # an option has both
        return params

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped from error


def end_stopped(error: BaseException | None) -> NoReturn:
    """End the program at once, without waiting for threads that load models."""
    if not isinstance(error, ReportedStop):
        with suppress(OSError, ValueError):  # the terminal may be gone
            echo("cachegraph: interrupted", err=True)
    flush_streams()
    os._exit(exit_code())
