"""Errors as API responses: a status, a sentence, and the API's error type."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from cachegraph.agents.spec import EndpointSpec
from cachegraph.errors import (
    CachegraphError,
    ConfigError,
    InputError,
    RecipeError,
    RunError,
    ToolError,
)
from cachegraph.graph.recipe.spec import GraphSpec

from .hide_paths import hide_paths

__all__ = ["NOT_AGAIN", "ApiError", "api_error", "first_flaw"]

NOT_AGAIN = {"x-should-retry": "false"}  # the official clients retry a 5xx without this header


@dataclass
class ApiError(Exception):
    """An error response. `message` is one sentence, safe to show to any client."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def api_error(error: Exception, spec: GraphSpec | None = None) -> ApiError:
    """Convert an error to a response; `spec` is the recipe of the failed run."""
    if isinstance(error, ApiError):
        return error
    words = hide_paths(str(error))
    if isinstance(error, InputError | RecipeError):
        return ApiError(400, words, "invalid_input")
    if isinstance(error, RunError):
        return _failed_run(error, words, spec)
    if isinstance(error, ConfigError):
        return ApiError(503, words, "not_configured", headers=NOT_AGAIN)
    if isinstance(error, CachegraphError):
        return ApiError(422, words, "run_failed")
    return ApiError(500, "the server failed in a way that its log tells of", "internal_error")


def _failed_run(error: RunError, words: str, spec: GraphSpec | None) -> ApiError:
    """Convert a failed run's error: a retry with this input is useless, unless another server caused the failure."""
    cause = error.__cause__
    while isinstance(cause, RunError) and cause.__cause__ is not None:  # of an included recipe
        cause = cause.__cause__
    if isinstance(cause, InputError):
        return ApiError(400, words, "invalid_input")
    failed = [name for name, agent in getattr(error.result, "agents", {}).items() if agent.status == "failed"]
    if isinstance(cause, ToolError) or (spec is not None and any(_is_remote(spec, name) for name in failed)):
        return ApiError(502, words, "upstream_failed", headers=NOT_AGAIN)
    if isinstance(cause, ConfigError):
        return ApiError(503, words, "not_configured", headers=NOT_AGAIN)
    return ApiError(422, words, "run_failed")


def _is_remote(spec: GraphSpec, agent: str) -> bool:
    entry = spec.speakers.get(agent)
    return entry is not None and isinstance(spec.models.get(entry.model), EndpointSpec)


def first_flaw(error: ValidationError, fields: Mapping[str, Any]) -> ApiError:
    """Return the first problem of a request's body; `fields` are its valid fields."""
    from cachegraph.common.did_you_mean import suggest

    first = error.errors(include_url=False, include_context=False)[0]
    path = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    param = ".".join(path) or None
    if first["type"] == "extra_forbidden" and len(path) == 1:
        return ApiError(400, f"there is no field {path[0]!r}{suggest(path[0], fields)}", "unknown_parameter", param)
    words = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param}: {words}" if param else words, "invalid_value", param)
