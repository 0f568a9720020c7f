"""/graphs: the structure of this server's recipes."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cachegraph.channels.spec import CHANNELS
from cachegraph.graph.recipe.spec import GraphSpec

from .errors import ApiError
from .hide_paths import hide_paths
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
    """Return what a drawing needs, without prompts, addresses, files and keys."""
    spec = served.graph.spec
    return {
        "name": spec.name,
        "description": spec.description,
        "inputs": {
            name: {"description": entry.description, "type": entry.kind, "default": entry.default}
            for name, entry in spec.inputs.items()
        },
        "agents": {name: _agent(spec, name) for name in spec.agents},
        "edges": [
            {
                "from": edge.sender,
                "to": edge.receiver,
                "channel": edge.channel,
                "when": edge.when,
                "max_rounds": edge.max_rounds,
            }
            for edge in spec.edges
        ],
        "outputs": dict(spec.outputs),
        "channels": list(CHANNELS) if spec.edges else [],
        "remembers": served.remembers,
        "warnings": [hide_paths(str(warning)) for warning in served.graph.warnings()],
    }


def _agent(spec: GraphSpec, name: str) -> dict[str, Any]:
    entry = spec.agents[name]
    kind = next((key for key in ("model", "graph", "function", "pause") if hasattr(entry, key)), "model")
    told = getattr(entry, kind) if kind in ("model", "graph") else None
    return {"kind": kind, kind if told else "name": hide_paths(str(told)) if told else name}
