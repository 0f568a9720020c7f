"""Read and validate a request's body: JSON of bounded size."""

from typing import Any, TypeVar

import anyio
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from cachegraph.common.json_text import JSONProblem, parse_json

from .connection import ClientGone
from .errors import ApiError, first_flaw

__all__ = ["read_body"]

PATIENCE = 60.0  # seconds to receive a body

BodyT = TypeVar("BodyT", bound=BaseModel)


async def read_body(request: Request, kind: type[BodyT], most: int) -> BodyT:
    """Read the body as a value of `kind`. Raises ApiError."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        # Browsers let pages send other content types cross-site without a preflight request.
        raise ApiError(415, "the body must be JSON, with `Content-Type: application/json`", "unsupported_media_type")
    data = await _read_json(request, most)
    if not isinstance(data, dict):
        raise ApiError(400, "the body must be a JSON object", "invalid_json")
    try:
        return kind.model_validate(data, strict=True)
    except ValidationError as error:
        raise first_flaw(error, kind.model_fields) from error


async def _read(request: Request, most: int) -> bytes:
    _check_size(_declared(request), most)
    raw = bytearray()
    try:
        with anyio.fail_after(PATIENCE):
            async for chunk in request.stream():
                raw += chunk
                _check_size(len(raw), most)
    except ClientDisconnect:
        raise ClientGone from None
    except TimeoutError:
        words = f"the body was not whole after {PATIENCE:g} s"
        raise ApiError(408, words, "too_slow", headers={"Connection": "close"}) from None
    return bytes(raw)


def _declared(request: Request) -> int:
    """The size that the headers give the body; 0 if they don't."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else 0


def _check_size(size: int, most: int) -> None:
    if size > most:
        words = f"the body is larger than the {most} bytes that this server takes"
        raise ApiError(413, words, "too_large", headers={"Connection": "close"})


async def _read_json(request: Request, most: int) -> Any:
    raw = await _read(request, most)
    try:
        return parse_json(raw.decode(), strict=True)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 text (byte {error.start + 1})", "invalid_json") from error
    except JSONProblem as error:
        raise ApiError(400, f"the body can't be read: {error}", "invalid_json") from error
