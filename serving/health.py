"""/health and /ready: whether the process can work, and whether its models are loaded."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cachegraph import __version__

from .server_state import state_of

__all__ = ["show_health", "show_ready"]

LOST = "cluster lost"  # addresses and reasons are for clients with a key


async def show_health(request: Request) -> Response:
    """Report that the process responds; 503 once the cluster of its models is lost, so that it must start again."""
    lost = state_of(request).graphs.why_lost is not None
    return JSONResponse({"status": LOST if lost else "ok", "version": __version__}, 503 if lost else 200)


async def show_ready(request: Request) -> Response:
    """Return 200 while the server accepts requests, 503 while it loads models, shuts down, or has lost its cluster."""
    state = state_of(request)
    lost = state.graphs.why_lost is not None
    status = "stopping" if state.queue.stopping else LOST if lost else "ready" if state.graphs.ready else "loading"
    return JSONResponse({"status": status}, 200 if status == "ready" else 503)
