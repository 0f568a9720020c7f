"""/v1/models: the recipes of this server, for clients of both APIs."""

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cachegraph.channels.spec import CHANNELS

from ..served_graphs import ServedGraph
from ..server_state import state_of

__all__ = ["list_models", "show_model"]


async def list_models(request: Request) -> Response:
    """List all recipes; `recipe@channel` selects a channel."""
    models = [_model(served) for served in state_of(request).graphs]
    ends = {"first_id": models[0]["id"], "last_id": models[-1]["id"]} if models else {"first_id": None, "last_id": None}
    return JSONResponse({"object": "list", "data": models, "has_more": False, **ends})


async def show_model(request: Request) -> Response:
    """Show one recipe, with or without a channel."""
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
        # In the format of the Anthropic API, which has the same path.
        "type": "model",
        "display_name": name or served.name,
        "created_at": datetime.fromtimestamp(served.created, UTC).isoformat().replace("+00:00", "Z"),
        "cachegraph": {
            "description": spec.description,
            "inputs": {
                key: {"type": entry.kind, "description": entry.description, "required": entry.is_required}
                for key, entry in spec.inputs.items()
            },
            "channels": list(CHANNELS) if spec.edges else [],
        },
    }
