"""Mend text that is not valid Unicode.

Nothing that holds one can be encoded, so they are mended where text comes in: halves that follow each other become
their character, a lone one becomes U+FFFD.
"""

import re
from typing import Any

__all__ = ["join_halves", "mend", "mend_json"]

_HALF = re.compile("[\ud800-\udfff]")
_HELD = re.compile("[\ud800-\udbff]\\Z")


def mend(text: str) -> str:
    """The text with every pair joined and every lone half replaced."""
    if text.isascii() or not _HALF.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def mend_json(value: Any) -> Any:
    """A JSON value with all its texts mended, keys included."""
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, dict):
        return {mend(key) if isinstance(key, str) else key: mend_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mend_json(inner) for inner in value) if type(value) in (list, tuple) else value
    return value


def join_halves(held: str, text: str) -> tuple[str, str]:
    """A stream's next piece, after the half that was held back: what is certain, and the half to hold back now."""
    text = held + text
    last = _HELD.search(text)
    return (mend(text[:-1]), text[-1]) if last else (mend(text), "")
