"""Errors that cachegraph raises.

    CachegraphError                  exit code 1
    ├── RecipeError                  2   the recipe is invalid; holds every problem, each with its position
    ├── InputError                   2   the inputs or options of a valid recipe are wrong (a missing input, a bad flag)
    ├── ConfigError                  3   this machine lacks something (a key, the network, room on the disk)
    ├── ModelError                   1   a model can't be found, fetched, read or placed
    ├── FuserError                   1   a fuser's folder is unreadable, unsafe, or for another pair of models
    ├── ChannelError                 1   a cache edge can't send its cache; falls back to text unless forbidden
    ├── ToolError                    1   a tool server can't be started, reached or understood
    └── RunError                     1   a run failed; holds the results of the agents that finished

A message is one sentence that says what is wrong, where, and what to do. Messages name things with `repr`.
"""

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CachegraphError",
    "ChannelError",
    "ConfigError",
    "FuserError",
    "InputError",
    "ModelError",
    "Problem",
    "RecipeError",
    "RunError",
    "ToolError",
    "is_library_error",
    "library_errors",
    "reason_of",
]


class CachegraphError(Exception):
    """Base class of all errors; `exit_code` is the exit code of the command line."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One problem in a recipe, and its position. Line and column count from 1; 0 means unknown."""

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    source: str = ""  # the line with the problem, without its newline
    hint: str = ""  # what the author probably meant, or what to do

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        text = f"{place}: {self.message}" if place else self.message
        if self.hint:
            text += f"; {self.hint}"
        if self.source.strip():
            source, caret = _excerpt(self.source, max(self.column - 1, 0))
            text += f"\n    {source}\n    {caret}"
        return text


def _excerpt(source: str, column: int) -> tuple[str, str]:
    """Return the part of a line around a column, safe to print, and the line with the caret below it."""
    start = max(column - 50, 0) if len(source) > 75 else 0
    shown = source[start : start + 75]
    before = shown[: column - start]
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in before)
    caret = "".join(character if character == "\t" else " " for character in before) + " " * wide + "^"
    return "".join(
        character if character == "\t" or character.isprintable() else "\ufffd" for character in shown
    ), caret


class RecipeError(CachegraphError):
    """A recipe can't be read, checked or planned; raised once, with all problems."""

    exit_code = 2

    def __init__(self, problems: "list[Problem] | str"):
        self.problems = [Problem(problems)] if isinstance(problems, str) else problems
        super().__init__("\n".join(str(problem) for problem in self.problems))


class InputError(CachegraphError):
    """Inputs or options don't fit the recipe or the command."""

    exit_code = 2


class ConfigError(CachegraphError):
    """This machine or account lacks something: a key, a package, the network, disk space."""

    exit_code = 3


class ModelError(CachegraphError):
    """A model can't be found, fetched, verified or read, or doesn't fit the device."""


class FuserError(CachegraphError):
    """A fuser can't be found or trusted, or doesn't fit the two models of its edge."""


class ChannelError(CachegraphError):
    """A cache edge can't send its cache; if the recipe allows it, the edge falls back to text instead."""


class ToolError(CachegraphError):
    """A tool server can't be started or reached, or stops answering. A tool's own error is a result."""


class RunError(CachegraphError):
    """A run failed. `result` holds every agent that finished before."""

    def __init__(self, message: str, result: Any = None):
        self.result = result
        super().__init__(message)


@contextmanager
def library_errors(explain: Callable[[str], CachegraphError]) -> Iterator[None]:
    """Convert any error that a library raises in this block into `explain(reason)`; for reading untrusted files.

    A CachegraphError passes unchanged. So do KeyboardInterrupt, cancellation and SystemExit.
    """
    try:
        yield
    except CachegraphError:
        raise
    except BaseException as error:
        if not is_library_error(error):
            raise
        raise explain(reason_of(error)) from error


def is_library_error(error: BaseException) -> bool:
    """Whether a library raised this error about its input: any Exception, or a panic of Rust code.

    pyo3's PanicException is a BaseException, and each extension module defines its own class; so compare its name.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, at most 300 characters, with the type where the line needs it."""
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    if type(error).__name__ == "ValidationError" and callable(errors := getattr(error, "errors", None)):  # pydantic's
        first = errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")[:300]
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    if not lines:
        return name
    plain = isinstance(error, OSError | ImportError) or type(error) in (ValueError, RuntimeError)
    return (lines[0] if plain else f"{name}: {lines[0]}")[:300]
