"""/openapi.json: the server's OpenAPI document, for generators of clients and tests."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cachegraph import __version__

from .anthropic import message_request
from .anthropic.message_request import CountRequest, MessageRequest
from .edit import CheckRequest
from .openai import chat_request, response_request
from .openai.chat_request import ChatRequest
from .openai.response_request import ResponseRequest
from .openapi_responses import ERROR_SCHEMAS, responses
from .runs.routes import MOST, MOST_SKIPPED, AnswerRequest, RunRequest
from .runs.routes import STATUSES as STATUSES_OF_RUNS
from .served_graphs import ServedGraph
from .server_state import state_of

__all__ = ["document", "show_openapi"]

RUN = ({"name": "run", "in": "path", "required": True, "schema": {"type": "string"}},)
LIST: tuple[Mapping[str, Any], ...] = (
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": MOST}},
    {"name": "skip", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": MOST_SKIPPED}},
    {"name": "graph", "in": "query", "schema": {"type": "string"}},
    {"name": "status", "in": "query", "schema": {"enum": [*STATUSES_OF_RUNS]}},
)
GRAPH = ({**RUN[0], "name": "graph"},)
TURN = ({"name": "turn", "in": "query", "required": True, "schema": {"type": "string"}},)
LAST = ({"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}},)

# Path, method, summary, body, parameters.
OPERATIONS: tuple[tuple[str, str, str, type[BaseModel] | None, tuple[Mapping[str, Any], ...]], ...] = (
    ("/", "get", "The studio, a page.", None, ()),
    ("/studio/{file}", "get", "A file of that page.", None, ({**RUN[0], "name": "file"},)),
    ("/v1/models", "get", "The recipes as models.", None, ()),
    ("/v1/models/{model}", "get", "One of them.", None, ({**RUN[0], "name": "model"},)),
    ("/v1/chat/completions", "post", "A conversation in, a recipe's reply out (OpenAI).", ChatRequest, ()),
    ("/v1/responses", "post", "Text in, a recipe's reply out (OpenAI).", ResponseRequest, ()),
    ("/v1/messages", "post", "A conversation in, a recipe's reply out (Anthropic).", MessageRequest, ()),
    ("/v1/messages/count_tokens", "post", "The tokens of a conversation.", CountRequest, ()),
    ("/runs", "get", "Stored runs, the newest first.", None, LIST),
    ("/runs", "post", "Start a run.", RunRequest, ()),
    ("/runs/{run}", "get", "One run.", None, RUN),
    ("/runs/{run}/events", "get", "Its events, as server-sent events.", None, (*RUN, *LAST)),
    ("/runs/{run}/replay", "get", "Its recipe, and its events so far.", None, RUN),
    ("/runs/{run}/prompt", "get", "The prompt of a turn, by origin.", None, (*RUN, *TURN)),
    ("/runs/{run}/cancel", "post", "Cancel a run.", None, RUN),
    ("/runs/{run}/answer", "post", "Answer a paused run.", AnswerRequest, RUN),
    ("/graphs", "get", "The recipes as they are declared.", None, ()),
    ("/graphs/{graph}", "get", "One of them.", None, GRAPH),
    ("/graphs/{graph}/recipe", "get", "The text of one of them.", None, GRAPH),
    ("/graphs/{graph}/check", "post", "What is wrong in a changed recipe.", CheckRequest, GRAPH),
    ("/recipe.schema.json", "get", "The JSON Schema of recipes.", None, ()),
    ("/reports", "get", "Comparison reports.", None, ()),
    (
        "/reports/{report}",
        "post",
        "The address at which one of them can be viewed.",
        None,
        ({**RUN[0], "name": "report"},),
    ),
    ("/reports/view/{ticket}", "get", "A report.", None, ({**RUN[0], "name": "ticket"},)),
    ("/health", "get", "Whether the process can work.", None, ()),
    ("/ready", "get", "Whether the models are loaded.", None, ()),
    ("/metrics", "get", "Metrics in Prometheus' text format.", None, ()),
)
# Fields that the models accept with any value, so that the server can say why it refuses one.
ACCEPTED: Mapping[type[BaseModel], Mapping[str, Sequence[Any]]] = {
    ChatRequest: chat_request.NEUTRAL,
    ResponseRequest: response_request.NEUTRAL,
    MessageRequest: message_request.NEUTRAL,
    CountRequest: message_request.NEUTRAL,
}


async def show_openapi(request: Request) -> Response:
    """Show the document."""
    return JSONResponse(document(tuple(_example(served) for served in state_of(request).graphs)))


def _schemas() -> dict[str, Any]:
    """Return the schemas of all bodies. They forbid some of what the models accept only to say why it is refused."""
    modes: list[tuple[type[BaseModel], Any]] = [(body, "validation") for _, _, _, body, _ in OPERATIONS if body]
    _, found = models_json_schema(modes, ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = found.get("$defs", {})
    for kind, fields in ACCEPTED.items():
        properties = schemas[kind.__name__]["properties"]
        for name in fields.keys() & properties.keys():
            properties[name] = {"enum": [None, *fields[name]]}
    schemas["OtherPart"] = {"not": {}, "description": "Parts of other kinds than text are refused."}
    schemas["JSONSchemaFormat"]["required"] = ["schema"]
    schemas["ResponseFormat"] |= {
        "if": {"properties": {"type": {"const": "json_schema"}}},
        "then": {"required": ["json_schema"], "properties": {"json_schema": {"type": "object"}}},
    }
    for body in ("RunRequest", "CheckRequest"):
        schemas[body]["properties"]["channels"]["propertyNames"] = {"pattern": "^[^:]+:[^:]+$"}
    return {**schemas, **ERROR_SCHEMAS}


class RecipeExample(NamedTuple):
    """A served recipe, with values for the inputs that it requires."""

    name: str
    inputs: tuple[str, ...]  # those of texts; others have examples of no type


def _example(served: ServedGraph) -> RecipeExample:
    inputs = served.graph.spec.inputs.items()
    return RecipeExample(
        served.name, tuple(name for name, entry in inputs if entry.is_required and entry.kind == "string")
    )


@lru_cache(maxsize=4)
def document(recipes: tuple[RecipeExample, ...] = ()) -> dict[str, Any]:
    """Build the OpenAPI document, version 3.1, with these recipes as examples."""
    paths: dict[str, dict[str, Any]] = {}
    for path, method, summary, body, parameters in OPERATIONS:
        operation: dict[str, Any] = {
            "summary": summary,
            "operationId": f"{method}_{path.strip('/').replace('/', '_').replace('{', '').replace('}', '')}",
            "responses": responses(path, method),
        }
        if parameters:
            operation["parameters"] = [_parameter(parameter, recipes) for parameter in parameters]
        if body is not None:
            content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}
            if body is RunRequest and recipes:
                content["examples"] = {recipe.name: {"value": _run(recipe)} for recipe in recipes}
            operation["requestBody"] = {"required": True, "content": {"application/json": content}}
        paths.setdefault(path, {})[method] = operation
    schemes = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "cachegraph", "version": __version__},
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": schemes},
        "security": [{"key": []}, {}],
    }


def _parameter(parameter: Mapping[str, Any], recipes: Sequence[RecipeExample]) -> dict[str, Any]:
    if parameter["in"] != "path" or parameter["name"] not in ("graph", "model") or not recipes:
        return dict(parameter)
    return {**parameter, "examples": {recipe.name: {"value": recipe.name} for recipe in recipes}}


def _run(recipe: RecipeExample) -> dict[str, Any]:
    return {"graph": recipe.name, "inputs": dict.fromkeys(recipe.inputs, "Why is the sky blue?")}
