"""Error messages without the paths of the server's disk."""

import re

__all__ = ["hide_paths"]

# Two parts at least, so that `and/or` and `/v1` stay; not behind a letter, a colon or another slash, as in addresses.
_PATH = re.compile(
    r"(?<![\w/.:~])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"`<>|:;,()\[\]{}]+[/\\])+([^\s/\\'\"`<>|:;,()\[\]{}]*)"
)
_QUOTED = re.compile(r"(['\"`])(?:~|[A-Za-z]:)?[/\\](?:[^/\\'\"`\n]+[/\\])+([^/\\'\"`\n]*)\1")


def hide_paths(text: str) -> str:
    """The text with every absolute path cut down to its last part."""
    text = _QUOTED.sub(lambda found: f"{found[1]}{found[2]}{found[1]}", text)
    return _PATH.sub(lambda found: found[1], text)
