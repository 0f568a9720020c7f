"""/v1/models: the recipes of this server."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cachegraph.channels.spec import CHANNELS

from ..served_graphs import ServedGraph
from ..server_state import state_of

__all__ = ["list_models", "show_model"]


async def list_models(request: Request) -> Response:
    """All recipes; a channel is chosen by `recipe@channel`."""
    return JSONResponse({"object": "list", "data": [_model(served) for served in state_of(request).graphs]})


async def show_model(request: Request) -> Response:
    """One recipe, by itself or with a channel."""
    name = request.path_params["model"]
    served, _ = state_of(request).graphs.find(name)
    return JSONResponse(_model(served, name))


def _model(served: ServedGraph, name: str | None = None) -> dict[str, Any]:
    spec = served.graph.spec
    return {
        "id": name or served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "cachegraph",
        "cachegraph": {
            "description": spec.description,
            "inputs": {
                key: {"type": entry.kind, "description": entry.description, "required": entry.is_required}
                for key, entry in spec.inputs.items()
            },
            "channels": list(CHANNELS) if spec.edges else [],
        },
    }
