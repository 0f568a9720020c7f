"""/health and /ready: whether the process responds, and whether its models are loaded."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cachegraph import __version__

from .server_state import state_of

__all__ = ["show_health", "show_ready"]


async def show_health(request: Request) -> Response:
    """Report that the process responds."""
    return JSONResponse({"status": "ok", "version": __version__})


async def show_ready(request: Request) -> Response:
    """Return 200 while the server accepts requests, 503 while it loads models or shuts down."""
    state = state_of(request)
    status = "stopping" if state.queue.stopping else "ready" if state.graphs.ready else "loading"
    return JSONResponse({"status": status}, 200 if status == "ready" else 503)
