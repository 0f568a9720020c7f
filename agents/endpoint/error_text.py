"""What a server says of an error, found in its JSON or its HTML page."""

import json
import re
from html import unescape

from .completion import error_in

__all__ = ["page_title", "public_address", "server_message"]


def server_message(body: str) -> str | None:
    """The sentence in an error's JSON, wherever it stands."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    said = said[0] if isinstance(said, list) and said else said
    error = error_in(said) or said
    for key in ("message", "detail", "error", "msg"):
        inner = error.get(key) if isinstance(error, dict) else error
        inner = inner[0] if isinstance(inner, list) and inner else inner
        if isinstance(inner, dict):
            inner = inner.get("message") or inner.get("msg")
        if isinstance(inner, str) and inner.strip():
            return inner
    return None


def page_title(body: str) -> str:
    """What a page says, without its markup."""
    if re.match(r"\s*<(?:!doctype|html|head|body)\b", body, re.IGNORECASE) is None:
        return body
    found = re.search(r"<(title|h1)\b[^>]*>([^<]*)", body, re.IGNORECASE)
    return f"an HTML page, {unescape(found[2]).strip()!r}" if found else "an HTML page"


def public_address(url: str) -> str:
    """The URL without what may be secret in it: a user's name and password, a query."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2].partition('?')[0]}{slash}{path.partition('?')[0]}"
