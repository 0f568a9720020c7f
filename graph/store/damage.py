"""Validation of possibly damaged JSON of the store.

Does not use pydantic, which rejects lone surrogates: the store keeps those.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

__all__ = [
    "Check",
    "all_of",
    "by_name",
    "either",
    "fields",
    "is_count",
    "is_number",
    "is_text",
    "is_time",
    "one_of",
    "shaped",
]

Check = Callable[[Any], bool]

LATEST = 2.0**37  # seconds since 1970: in the year 6325, which every library can still format


def fields(text: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError if its fields or their types differ from `checks`."""
    if not is_text(text):
        raise ValueError("it is not text")
    plain = json.loads(text)
    if not isinstance(plain, dict):
        raise ValueError("it is not a JSON object")
    for name, value in plain.items():
        if name not in checks:
            raise ValueError(f"it has an unknown field {name!r}")
        if not checks[name](value):
            raise ValueError(f"its {name!r} is wrong")
    return plain


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LATEST


def is_time(value: Any) -> bool:
    return is_number(value) and value >= 0


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from zero on."""
    return isinstance(value, int) and is_time(value)


def one_of(*values: str | None) -> Check:
    return lambda value: (value is None or isinstance(value, str)) and value in values


def shaped(checks: Mapping[str, Check], others: bool = False) -> Check:
    """Check the values of an object by name. `others`: it may have further names, which nobody reads."""

    def check(value: Any) -> bool:
        return isinstance(value, dict) and all(
            checks[name](entry) if name in checks else others for name, entry in value.items()
        )

    return check


def either(*kinds: type | None) -> Check:
    """Check for any of these types; None means null."""
    wanted = tuple(type(None) if kind is None else kind for kind in kinds)
    return lambda value: isinstance(value, wanted)


def all_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def by_name(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))
