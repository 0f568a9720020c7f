"""The JSON error object of a failing command with --json: error, kind, exit code and partial results."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from cachegraph.errors import RecipeError

from . import output

__all__ = ["add_facts", "print_exit", "print_failure", "reset"]

Facts = Callable[[], Mapping[str, Any]]
_facts: list[Facts] = []


def reset() -> None:
    """Forget the facts of an earlier command."""
    _facts.clear()
    output.printed_json = False


def add_facts(facts: Facts) -> None:
    """Add these facts to the object, as they are when the command fails. Later calls override earlier ones."""
    _facts.append(facts)


def print_failure(error: BaseException, sentence: str, code: int) -> None:
    """Print the object on stdout, if JSON was requested and none was printed."""
    if not _wants_json() or output.printed_json:
        return
    facts: dict[str, Any] = {}
    for each in _facts:
        facts |= each()
    facts |= {"error": sentence, "kind": type(error).__name__, "exit_code": code}
    if isinstance(error, RecipeError):
        facts["problems"] = [vars(problem) for problem in error.problems]
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
    options = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    command = "_".join(each for each in options[:1] if each.isidentifier()).upper()
    return "--json" in options or os.environ.get(f"CACHEGRAPH_{command}_JSON", "").lower() in ("1", "true", "yes", "on")
