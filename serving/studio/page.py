"""The page's files, at / and /studio/. They are the same for everybody, so they need no key."""

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from ..errors import ApiError

__all__ = ["is_page", "show_file", "show_page"]

STATIC = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Trusted Types make the browser refuse markup that a script builds from text.
POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


class _File(NamedTuple):
    content: bytes
    media_type: str
    etag: str


async def show_page(request: Request) -> Response:
    """Show the page."""
    return _answer(request, "index.html")


async def show_file(request: Request) -> Response:
    """Show a file that the page loads."""
    return _answer(request, request.path_params["file"])


def is_page(path: str) -> bool:
    """Whether this is the path of one of the page's files."""
    return path == "/" or path.startswith("/studio/")


def _answer(request: Request, name: str) -> Response:
    file = _files().get(name)
    if file is None:
        raise ApiError(404, f"the studio has no file {name[:100]!r}", "not_found")
    headers = {"Cache-Control": "no-cache", "ETag": file.etag, "Content-Security-Policy": POLICY}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


@cache
def _files() -> dict[str, _File]:
    """Read all files once; a request can name no other."""
    found = {}
    for path in STATIC.iterdir():
        if path.suffix in TYPES:
            content = path.read_bytes()
            found[path.name] = _File(content, TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found
