"""What a command with --json prints where it fails: error, kind, exit code, and what had finished by then."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from cachegraph.errors import RecipeError

from . import output

__all__ = ["begin", "note", "print_ending", "print_failure"]

Facts = Callable[[], Mapping[str, Any]]
_finished: list[Facts] = []


def begin() -> None:
    """A command begins: nothing has finished."""
    _finished.clear()
    output.printed_json = False


def note(facts: Facts) -> None:
    """Have these facts in the object, as they are when the command fails; those of a later call win."""
    _finished.append(facts)


def print_failure(error: BaseException, sentence: str, code: int) -> None:
    """Print the object on stdout, if JSON was asked for and none was printed."""
    if not _wants_json() or output.printed_json:
        return
    facts: dict[str, Any] = {}
    for each in _finished:
        facts |= each()
    facts |= {"error": sentence, "kind": type(error).__name__, "exit_code": code}
    if isinstance(error, RecipeError):
        facts["problems"] = [vars(problem) for problem in error.problems]
    output.echo_json(json.dumps(facts, ensure_ascii=False))


def print_ending(ended: SystemExit) -> None:
    """The same for what Typer has told of itself before it ended: a wrong command line, or Ctrl-C."""
    error: BaseException | None = ended
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            print_failure(error, "interrupted", 130)
        elif callable(say := getattr(error, "format_message", None)):  # a ClickException, which Typer has its own of
            print_failure(error, say(), getattr(error, "exit_code", 2))
        error = error.__cause__ or error.__context__


def _wants_json() -> bool:
    options = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    command = "_".join(each for each in options[:1] if each.isidentifier()).upper()
    return "--json" in options or os.environ.get(f"CACHEGRAPH_{command}_JSON", "").lower() in ("1", "true", "yes", "on")
