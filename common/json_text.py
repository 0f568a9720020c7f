"""Parse and check JSON from outside."""

import json
import math
from typing import Any

from .surrogates import mend_json

__all__ = ["JSONProblem", "all_finite", "is_deep", "parse_json"]

MAX_DEPTH = 200
MAX_DIGITS = 4_000

_TOO_DEEP = f"it nests deeper than {MAX_DEPTH} levels; make it flatter"


class JSONProblem(ValueError):
    """The reason why a text is not usable JSON, as the end of a sentence."""


def parse_json(text: str, *, strict: bool = False) -> Any:
    """Parse a JSON text; drops a byte order mark and mends lone surrogates. Raises JSONProblem.

    `strict`: reject NaN, Infinity and numbers beyond doubles, which Python accepts but JSON does not define.
    """
    text = text.removeprefix("\ufeff")
    try:
        value = (
            json.loads(text, parse_int=_int, parse_float=_finite, parse_constant=_constant)
            if strict
            else json.loads(text, parse_int=_int)
        )
        if is_deep(value):
            raise JSONProblem(_TOO_DEEP)
        return mend_json(value)
    except JSONProblem:
        raise
    except RecursionError as error:
        raise JSONProblem(_TOO_DEEP) from error  # by how much Python still parses differs from version to version
    except ValueError as error:
        raise JSONProblem(f"it is not JSON: {error}") from error


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise JSONProblem(f"it holds a number of {len(digits):,} digits; write it as text")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise JSONProblem(f"{digits[:40]} is beyond what a number holds")
    return number


def _constant(name: str) -> float:
    raise JSONProblem(f"{name} is not a number in JSON")


def all_finite(value: Any) -> bool:
    """Whether a value holds neither NaN nor Infinity, which Python writes but other JSON parsers reject."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return False
        if isinstance(item, dict | list | tuple):
            todo += item.values() if isinstance(item, dict) else item
    return True


def is_deep(value: Any) -> bool:
    """Whether a JSON value exceeds the nesting limit of inputs."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list | tuple)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True
