"""Errors in OpenAI's format."""

from collections.abc import Iterable

from starlette.responses import JSONResponse, Response

from ..errors import ApiError, api_error
from ..event_stream import event
from ..json_response import to_json

__all__ = ["complain", "refuse"]

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def refuse(error: Exception) -> Response:
    """Build the error response."""
    known = api_error(error)
    return JSONResponse(_body(known), known.status, headers=dict(known.headers))


def complain(error: Exception) -> Iterable[bytes]:
    """Yield the final events of a failed stream."""
    yield event(to_json(_body(api_error(error))))


def _body(error: ApiError) -> dict[str, object]:
    kind = KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
