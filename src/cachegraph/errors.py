"""Every error that cachegraph raises on purpose.

    CachegraphError                  exit code 1
    ├── RecipeError                  2   the recipe is wrong; holds every problem found, each with its place
    ├── InputError                   2   what was asked of a right recipe is wrong (a missing input, a bad flag)
    ├── ConfigError                  3   this machine lacks something (a key, the network, room on the disk)
    ├── ModelError                   1   a model can't be found, fetched, read or placed
    ├── FuserError                   1   a fuser's folder is unreadable, hostile, or made for another pair
    ├── ChannelError                 1   a cache edge can't carry what it was asked to; falls back unless forbidden
    ├── ToolError                    1   a tool server can't be started, reached or understood
    └── RunError                     1   a run failed; holds what finished

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
    """The root of all errors below; `exit_code` is what the command line ends with."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a recipe, and where. Line and column count from 1; 0 means unknown."""

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    source: str = ""  # the offending line, without its newline
    hint: str = ""  # what was probably meant, or what to do

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
    """The part of a line around a column, fit for a terminal, and the caret below it."""
    start = max(column - 50, 0) if len(source) > 75 else 0
    shown = source[start : start + 75]
    before = shown[: column - start]
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in before)
    caret = "".join(character if character == "\t" else " " for character in before) + " " * wide + "^"
    return "".join(
        character if character == "\t" or character.isprintable() else "\ufffd" for character in shown
    ), caret


class RecipeError(CachegraphError):
    """A recipe that can't be read, checked or planned; raised once with all its problems."""

    exit_code = 2

    def __init__(self, problems: "list[Problem] | str"):
        self.problems = [Problem(problems)] if isinstance(problems, str) else problems
        super().__init__("\n".join(str(problem) for problem in self.problems))


class InputError(CachegraphError):
    """Inputs or options that don't fit the recipe or the command."""

    exit_code = 2


class ConfigError(CachegraphError):
    """Something that this machine or account must provide is missing."""

    exit_code = 3


class ModelError(CachegraphError):
    """A model that can't be found, fetched, verified, read, or that doesn't fit the device."""


class FuserError(CachegraphError):
    """A fuser that can't be found or trusted, or doesn't fit the two models it is to join."""


class ChannelError(CachegraphError):
    """A cache edge that can't work here; where the recipe allows it, the edge falls back to text instead."""


class ToolError(CachegraphError):
    """A tool server that can't be started or reached, or that breaks off; what a tool complains of is no error."""


class RunError(CachegraphError):
    """A run that failed. `result` holds every agent that finished before."""

    def __init__(self, message: str, result: Any = None):
        self.result = result
        super().__init__(message)


@contextmanager
def library_errors(explain: Callable[[str], CachegraphError]) -> Iterator[None]:
    """Turn whatever a library raises in this block into `explain(reason)`; for blocks that read other people's files.

    Our own errors pass as they are. So do Ctrl-C, cancellation and the end of the program.
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
    """Whether a library raised this about what it was given: any Exception, or a panic of code written in Rust.

    pyo3's PanicException is a BaseException, and every extension module has a class of its own, so only its name tells.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, at most 300 characters; with its type where the line alone says little."""
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
