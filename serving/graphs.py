"""/graphs: the structure of this server's recipes."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .config import ServerConfig
from .served_graphs import ServedGraph
from .server_state import state_of

__all__ = ["list_graphs", "show_graph"]


async def list_graphs(request: Request) -> Response:
    """List all recipes."""
    state = state_of(request)
    graphs = [_graph(served, state.config) for served in state.graphs]
    return JSONResponse({"graphs": graphs, "reports": state.config.reports is not None})


async def show_graph(request: Request) -> Response:
    """Show one recipe."""
    state = state_of(request)
    return JSONResponse(_graph(state.graphs.named(request.path_params["graph"]), state.config))


def _graph(served: ServedGraph, config: ServerConfig) -> dict[str, Any]:
    return {
        **served.description,
        "sha256": served.source.sha256,
        "remembers": served.remembers,
        "shows_recipe": config.shows_prompts,
        "runs_changes": config.allow_upload,
    }
