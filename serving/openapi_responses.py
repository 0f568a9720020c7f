"""Responses in the OpenAPI document: statuses, media types, the two forms of an error, and links from a run."""

from collections.abc import Mapping
from typing import Any

__all__ = ["ERROR_SCHEMAS", "responses"]

JSON, EVENTS = "application/json", "text/event-stream"
MEDIA: Mapping[str, tuple[str, ...]] = {  # where it is not JSON alone
    "/": ("text/html",),
    "/studio/{file}": ("text/css", "text/javascript", "image/svg+xml"),
    "/v1/chat/completions": (JSON, EVENTS),
    "/v1/responses": (JSON, EVENTS),
    "/v1/messages": (JSON, EVENTS),
    "/runs/{run}/events": (EVENTS,),
    "/reports/view/{ticket}": ("text/html",),
    "/metrics": ("text/plain",),
}
NOT_NOW = {
    "/health": "The cluster of the models is lost: start the server again.",
    "/ready": "The models are not loaded yet, or no longer.",
}
RUN_LINKS = ("get_runs_run", "get_runs_run_events", "get_runs_run_replay", "post_runs_run_cancel")


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


TEXT, OPTIONAL = {"type": "string"}, {"type": ["string", "null"]}
ERROR_SCHEMAS: Mapping[str, Any] = {
    "Error": _object(
        ["error"],
        error=_object(["message", "type", "param", "code"], message=TEXT, type=TEXT, param=OPTIONAL, code=OPTIONAL),
    ),
    "MessageError": _object(
        ["type", "error"], type={"const": "error"}, error=_object(["type", "message"], type=TEXT, message=TEXT)
    ),
}


def responses(path: str, method: str) -> dict[str, Any]:
    """Return the responses of an operation by status."""
    status, words = ("201", "Started.") if (path, method) == ("/runs", "post") else ("200", "The answer.")
    content = {media: {"schema": _of_media(media)} for media in MEDIA.get(path, (JSON,))}
    success: dict[str, Any] = {"description": words, "content": content}
    if status == "201":
        parameters = {"run": "$response.body#/id"}
        success["links"] = {name: {"operationId": name, "parameters": parameters} for name in RUN_LINKS}
    error = "MessageError" if path.startswith("/v1/messages") else "Error"
    body = {JSON: {"schema": {"$ref": f"#/components/schemas/{error}"}}}
    found = {
        status: success,
        "4XX": {"description": "The request is wrong, or not allowed; the body says why.", "content": body},
        "5XX": {"description": "The server, or one that it asks, can't do it now.", "content": body},
    }
    if path in NOT_NOW:
        found["503"] = {"description": NOT_NOW[path], "content": content}
    return found


def _of_media(media: str) -> dict[str, Any]:
    if media == EVENTS:  # the schema of one event
        return _object(["data"], data=TEXT, event=TEXT, id=TEXT)
    return {"type": "object"} if media == JSON else TEXT
