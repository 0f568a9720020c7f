"""Remove local paths from error messages."""

import re

__all__ = ["hide_paths"]

# At least two parts, so that `and/or` and `/v1` stay; not after a letter, a colon or another slash, as in addresses.
_PATH = re.compile(
    r"(?<![\w/.:~])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"`<>|:;,()\[\]{}]+[/\\])+([^\s/\\'\"`<>|:;,()\[\]{}]*)"
)
_QUOTED = re.compile(r"(['\"`])(?:~|[A-Za-z]:)?[/\\](?:[^/\\'\"`\n]+[/\\])+([^/\\'\"`\n]*)\1")


def hide_paths(text: str) -> str:
    """Shorten every absolute path in a text to its last part."""
    text = _QUOTED.sub(lambda found: f"{found[1]}{found[2]}{found[1]}", text)
    return _PATH.sub(lambda found: found[1], text)
