"""The JSON error object of a failing command with --json: error, kind, exit code and partial results."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import typer

from cachegraph.errors import ConfigError, RecipeError

from . import output

__all__ = ["add_facts", "file_errors", "print_exit", "print_failure", "reset"]

MAX_PATH = 200  # characters of a path that a message shows
Facts = Callable[[], Mapping[str, Any]]
_facts: list[Facts] = []
_app: typer.Typer | None = None  # with all commands


def reset(app: typer.Typer) -> None:
    """Forget the facts of an earlier command."""
    global _app
    _app = app
    _facts.clear()
    output.printed_json = False


def add_facts(facts: Facts) -> None:
    """Add these facts to the object, as they are when the command fails. Later calls override earlier ones."""
    _facts.append(facts)


@contextmanager
def file_errors() -> Iterator[None]:
    """Turn an OSError about a file or folder that no command expects to fail into ConfigError."""
    try:
        yield
    except OSError as error:
        if not error.filename or not error.strerror:  # of a socket or a pipe
            raise
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
        shown = repr(name if len(name) <= MAX_PATH else f"{name[:MAX_PATH]}…")
        remedy = "check that you may read and write it, or set CACHEGRAPH_HOME to another folder"
        raise ConfigError(f"{shown} can't be used: {error.strerror}; {remedy}") from error


def print_failure(error: BaseException, sentence: str, code: int) -> None:
    """Print the object on stdout, if JSON was requested and none was printed."""
    if not _wants_json() or output.printed_json:
        return
    facts: dict[str, Any] = {}
    for collect in _facts:
        facts |= collect()
    facts |= {"error": sentence, "kind": type(error).__name__, "exit_code": code}
    if isinstance(error, RecipeError):
        facts["problems"] = [vars(problem) for problem in error.problems]
    with suppress(BrokenPipeError):  # the exit code still tells
        output.echo_json(json.dumps(facts, ensure_ascii=False))


def print_exit(ended: SystemExit) -> None:
    """`print_failure` for errors that Typer has reported itself: a wrong command line, or Ctrl-C."""
    error: BaseException | None = ended
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            print_failure(error, "interrupted", 130)
        elif callable(say := getattr(error, "format_message", None)):  # a ClickException, also one of Typer's own copy
            print_failure(error, say(), getattr(error, "exit_code", 2))
        error = error.__cause__ or error.__context__


def _wants_json() -> bool:
    """Whether the failed command was asked for JSON, on its command line or by the environment.

    Parses the command line once more, as shell completion does: without callbacks, past anything that is wrong.
    """
    arguments = sys.argv[1:]
    context = _parse(typer.main.get_command(_app), arguments) if _app is not None else None
    if context is None:
        return "--json" in arguments[: arguments.index("--")] if "--" in arguments else "--json" in arguments
    return any(context.params.get(parameter.name) for parameter in context.command.params if "--json" in parameter.opts)


def _parse(command: Any, arguments: list[str]) -> Any:
    """The click context of the command that the arguments name, or None where they name none."""
    name, context = "cachegraph", None
    while command is not None:
        context = command.make_context(
            name, [*arguments], parent=context, resilient_parsing=True, ignore_unknown_options=True
        )
        if not hasattr(command, "resolve_command"):
            return context
        known = vars(context)  # click 8.1 has no underscore in front of it
        arguments = [*known.get("_protected_args", known.get("protected_args", ())), *context.args]
        name, command, arguments = command.resolve_command(context, arguments) if arguments else (name, None, [])
    return None
