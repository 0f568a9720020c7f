"""Validate one recipe part given in Python."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from cachegraph.channels.spec import EdgeSpec
from cachegraph.errors import Problem, RecipeError

from .validation_messages import key_hint, place_of, value_message
from .yaml_positions import Path

__all__ = ["edge_spec", "part_spec", "problems_of"]

# How Python code gives a missing part.
MISSING = {
    "agents": "add one with add_agent('NAME', model=..., prompt=...)",
    "output": "set `output` to an agent's name",
}
EDGE: TypeAdapter[EdgeSpec] = TypeAdapter(EdgeSpec)
ModelT = TypeVar("ModelT", bound=BaseModel)


def edge_spec(data: Mapping[str, Any]) -> EdgeSpec:
    """Validate an edge. Raises RecipeError."""
    try:
        return EDGE.validate_python(dict(data))
    except ValidationError as error:
        place = f"the edge from {data['from']!r} to {data['to']!r}"
        raise RecipeError(problems_of(error, place, ("edges", 0))) from error


def part_spec(kind: type[ModelT], data: Mapping[str, Any], above: Path) -> ModelT:
    """Validate a part of this kind. Raises RecipeError.

    `above` is its path in the recipe, for messages: a section, a name, and in a section of several kinds its kind.
    """
    try:
        return kind.model_validate(dict(data))
    except ValidationError as error:
        place = ".".join(map(str, above[:2]))
        raise RecipeError(problems_of(error, place, above)) from error


def problems_of(error: ValidationError, place: str = "", above: Path = ()) -> list[Problem]:
    """Convert pydantic errors to problems; `place` names the part that was validated, `above` is its path."""
    problems = []
    for detail in error.errors():
        inside = place_of(detail, above)[len(above[:2]) :]
        path = ".".join([*([place] if place else []), *map(str, inside)])
        message, hint = "", ""
        if detail["type"] == "extra_forbidden":
            message = "there is no such key"
            hint = key_hint(detail, above)
        elif detail["type"] == "missing":
            message, hint = "it is missing", "" if above else MISSING.get(path, "")
        else:
            message = value_message(detail, above)
        problems.append(Problem(f"{path}: {message}", hint=hint))
    return list(dict.fromkeys(problems))
