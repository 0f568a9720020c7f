"""/graphs: the structure of this server's recipes."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .describe import describe
from .errors import ApiError
from .served_graphs import ServedGraph
from .server_state import state_of

__all__ = ["list_graphs", "show_graph"]


async def list_graphs(request: Request) -> Response:
    """List all recipes."""
    return JSONResponse({"graphs": [_graph(served) for served in state_of(request).graphs]})


async def show_graph(request: Request) -> Response:
    """Show one recipe."""
    name = request.path_params["graph"]
    served = state_of(request).graphs.get(name)
    if served is None:
        raise ApiError(404, f"there is no graph {name[:100]!r}", "graph_not_found")
    return JSONResponse(_graph(served))


def _graph(served: ServedGraph) -> dict[str, Any]:
    return {**describe(served.graph.spec, served.graph.warnings()), "remembers": served.remembers}
