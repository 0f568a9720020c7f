"""Validate one recipe part given in Python."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from cachegraph.channels.spec import EdgeSpec
from cachegraph.common.did_you_mean import suggest
from cachegraph.errors import Problem, RecipeError

__all__ = ["edge_spec", "part_spec", "problems_of"]

EDGE: TypeAdapter[EdgeSpec] = TypeAdapter(EdgeSpec)
ModelT = TypeVar("ModelT", bound=BaseModel)


def edge_spec(data: Mapping[str, Any]) -> EdgeSpec:
    """Validate an edge. Raises RecipeError."""
    try:
        return EDGE.validate_python(dict(data))
    except ValidationError as error:
        raise RecipeError(problems_of(error, f"the edge from {data['from']!r} to {data['to']!r}")) from error


def part_spec(kind: type[ModelT], data: Mapping[str, Any], place: str) -> ModelT:
    """Validate a part of this kind; `place` is its path in the recipe, for messages. Raises RecipeError."""
    try:
        return kind.model_validate(dict(data))
    except ValidationError as error:
        raise RecipeError(problems_of(error, place, list(kind.model_fields))) from error


def problems_of(error: ValidationError, place: str, known: Sequence[str] = ()) -> list[Problem]:
    """Convert pydantic errors to problems; `known` are the valid keys at the place."""
    problems = []
    for detail in error.errors():
        path = ".".join([*([place] if place else []), *(str(part) for part in detail["loc"])])
        message, hint = detail["msg"][:1].lower() + detail["msg"][1:], ""
        if detail["type"] == "extra_forbidden":
            message = "there is no such key"
            hint = suggest(detail["loc"][-1], known).removeprefix("; ") if known and len(detail["loc"]) == 1 else ""
        elif detail["type"] == "missing":
            message = "it is missing"
        problems.append(Problem(f"{path}: {message}", hint=hint))
    return problems
