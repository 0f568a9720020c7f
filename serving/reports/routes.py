"""/reports: comparison reports, opened in the studio.

A report is a page with scripts. It is shown in a frame of an origin of its own, in which it can reach nothing of this
server. A frame sends no key, so it is opened by an address with a ticket, which a client with a key asks for.
"""

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..server_state import state_of
from .folder import VIEW

__all__ = ["list_reports", "open_report", "view_report"]

HEADERS = {
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; frame-ancestors 'self'"
    ),
    "X-Frame-Options": "SAMEORIGIN",
}


async def list_reports(request: Request) -> Response:
    """List the reports."""
    return JSONResponse({"reports": await run_sync(state_of(request).reports.listing)})


async def open_report(request: Request) -> Response:
    """Return the address at which a report can be viewed for a short time."""
    ticket = await run_sync(state_of(request).reports.ticket, request.path_params["report"])
    return JSONResponse({"url": f"{VIEW}{ticket}"}, 201)


async def view_report(request: Request) -> Response:
    """Show a report."""
    page = await run_sync(state_of(request).reports.read, request.path_params["ticket"])
    return Response(page, media_type="text/html; charset=utf-8", headers=HEADERS)
