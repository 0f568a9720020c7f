"""Convert a tool's result to text for a model."""

import json
from typing import Any, NamedTuple

from cachegraph.common.surrogates import mend

__all__ = ["Content", "content_of", "cut"]


class Content(NamedTuple):
    """The text of a result; `error` if the tool failed."""

    text: str
    error: bool = False


def content_of(result: Any) -> Content:
    """Convert an MCP result to text. Pictures and sounds are named, not shown; data without text becomes JSON."""
    parts = [_words(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return Content(mend("\n".join(parts)), bool(result.is_error))


def _words(block: Any) -> str:
    match block.type:
        case "text":
            return str(block.text)
        case "resource" if hasattr(block.resource, "text"):
            return str(block.resource.text)
        case "resource":
            return f"[{block.resource.uri}: not text]"
        case "resource_link":
            return f"[{block.uri}]"
        case kind:
            return f"[{kind}, {getattr(block, 'mime_type', 'unknown')}: not shown]"


def cut(text: str, most: int) -> str:
    """Truncate a text to this many bytes, with a note if anything is missing."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= most:
        return text
    return f"{encoded[:most].decode('utf-8', 'ignore')}\n[cut: {most} of {len(encoded)} bytes]"
