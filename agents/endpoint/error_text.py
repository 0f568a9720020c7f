"""Extract the message of a server's error from its JSON or HTML."""

import json
import re
from html import unescape

from .completion import error_in

__all__ = ["page_title", "public_address", "server_message"]


def server_message(body: str) -> str | None:
    """The message in an error's JSON, at any depth; None if there is none."""
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
    """The text of a page, without its markup."""
    if re.match(r"\s*<(?:!doctype|html|head|body)\b", body, re.IGNORECASE) is None:
        return body
    found = re.search(r"<(title|h1)\b[^>]*>([^<]*)", body, re.IGNORECASE)
    return f"an HTML page, {unescape(found[2]).strip()!r}" if found else "an HTML page"


def public_address(url: str) -> str:
    """The URL without its possibly secret parts: user name, password and query."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2].partition('?')[0]}{slash}{path.partition('?')[0]}"
