"""Sessions of responses that continue earlier ones: each begins as a copy of the earlier response's session.

The earlier response therefore stays unchanged, and several responses may continue it.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from secrets import token_hex

import anyio
from anyio.to_thread import run_sync

from cachegraph.agents.sessions.session_files import copy_session, discard
from cachegraph.errors import CachegraphError, InputError

from ..errors import ApiError
from ..served_graphs import ServedGraph
from ..sessions import RESPONSES, session_of
from .response_request import ResponseRequest

__all__ = ["new_id", "response_session", "session_name"]

ID = re.compile(r"resp_[0-9a-f]{24}")


def new_id() -> str:
    """Generate an unguessable response id."""
    return f"resp_{token_hex(12)}"


def session_name(served: ServedGraph, request: ResponseRequest, response: str) -> str | None:
    """Return a response's session; None if the recipe has no memory. Raises ApiError if the request needs one."""
    if not served.remembers:
        if request.previous_response_id is not None:
            words = f"no agent of {served.name!r} remembers anything, so no request can continue an earlier response; "
            raise ApiError(
                400, words + "give one of them `memory: true`", "unsupported_parameter", "previous_response_id"
            )
        return None
    return f"{RESPONSES}{response}"


@asynccontextmanager
async def response_session(request: ResponseRequest, name: str | None, tenant: str | None) -> AsyncIterator[None]:
    """Copy the earlier response's session for this one. Keeps the copy only if the block succeeds."""
    new = session_of(tenant, name)
    if new is None:
        yield
        return
    keep = False
    try:
        if request.previous_response_id is not None:
            await _copy(request.previous_response_id, new, tenant)
        yield
        keep = request.store is not False
    finally:
        if not keep:
            with anyio.CancelScope(shield=True), suppress(CachegraphError):  # the session may not exist
                await run_sync(discard, new)


async def _copy(previous: str, new: str, tenant: str | None) -> None:
    missing = ApiError(
        400, f"there is no response {previous!r} to continue", "previous_response_not_found", "previous_response_id"
    )
    old = session_of(tenant, f"{RESPONSES}{previous}")
    if old is None or not ID.fullmatch(previous):
        raise missing
    try:
        if not await run_sync(copy_session, old, new):
            raise missing
    except InputError as error:
        words = f"the response {previous!r} is being continued by another request; ask again"
        raise ApiError(409, words, "conflict", "previous_response_id") from error
