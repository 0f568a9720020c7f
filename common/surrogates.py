"""Mend text that is not valid Unicode.

Text with a lone surrogate can't be encoded, so incoming text is mended: adjacent halves become their character, a lone
half becomes U+FFFD.
"""

import re
from typing import Any

__all__ = ["join_halves", "mend", "mend_json"]

_HALF = re.compile("[\ud800-\udfff]")
_HELD = re.compile("[\ud800-\udbff]\\Z")


def mend(text: str) -> str:
    """Join every surrogate pair and replace every lone half."""
    if text.isascii() or not _HALF.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def mend_json(value: Any) -> Any:
    """Mend all strings of a JSON value, including keys."""
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, dict):
        return {mend(key) if isinstance(key, str) else key: mend_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mend_json(inner) for inner in value) if type(value) in (list, tuple) else value
    return value


def join_halves(held: str, text: str) -> tuple[str, str]:
    """Append a stream's next piece to the held half; return the complete text and the half to hold back now."""
    text = held + text
    last = _HELD.search(text)
    return (mend(text[:-1]), text[-1]) if last else (mend(text), "")
