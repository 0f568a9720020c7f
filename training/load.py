"""Load and check training recipes; every problem is reported with its line and column."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cachegraph.common.did_you_mean import near_or_known
from cachegraph.errors import ConfigError, Problem, RecipeError
from cachegraph.graph.recipe.load import read_text
from cachegraph.graph.recipe.yaml_positions import Document, read_yaml

from .spec import TrainSpec

__all__ = ["changed", "load_training", "training_schema"]

OF_GRAPH = "train for it with: cachegraph train --for RECIPE --edge SENDER:RECEIVER --data FILE"


def load_training(path: Path | str) -> TrainSpec:
    """Read and check a training recipe. Raises RecipeError with all its problems."""
    document = read_yaml(read_text(Path(path)).removeprefix("\ufeff"), str(path))
    data = document.root.value
    if not isinstance(data, dict):
        problem = document.problem("a training recipe is a mapping of keys to values", (), "start with 'version: 1'")
        raise RecipeError([*document.problems, problem])
    if "agents" in data and "for" not in data:
        problem = document.problem("this recipe declares a graph, not a training", ("agents",), OF_GRAPH, at_key=True)
        raise RecipeError([problem])
    try:
        spec = TrainSpec.model_validate(data)
    except ValidationError as error:
        raise RecipeError([*document.problems, *(_problem(detail, document) for detail in error.errors())]) from error
    if document.problems:
        raise RecipeError(list(document.problems))
    return spec


def changed(spec: TrainSpec, settings: Mapping[str, Any]) -> TrainSpec:
    """A copy with other values, by dotted key: {"optim.steps": 20}. Raises ConfigError for an unknown key."""
    data = spec.model_dump(by_alias=True)
    for key, value in settings.items():
        *path, last = key.split(".")
        place: Any = data
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ConfigError(f"a training recipe has no key {key!r}")
        place[last] = value
    try:
        return TrainSpec.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        place = f" at {where!r}" if where else ""
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"the training recipe would be wrong{place}: {message}") from error


def training_schema() -> str:
    """The JSON Schema of training recipes, as text."""
    schema = {**TrainSpec.model_json_schema(by_alias=True), "title": "A cachegraph training recipe"}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _problem(detail: ErrorDetails, document: Document) -> Problem:
    path = detail["loc"]
    if path[:1] == ("fuser",) and path[1:2] in (
        ("graft",),
        ("fuse",),
        ("joint",),
    ):  # the union member that pydantic inserts
        path = (*path[:1], *path[2:])
    if detail["type"] == "missing":
        return document.problem(f"the key {path[-1]!r} is missing", path[:-1])
    if detail["type"] == "extra_forbidden":
        return document.problem(f"unknown key {path[-1]!r}", path, _meant(path), at_key=True)
    path = path[: document.find(path)[1]]
    name = repr(path[-1]) if path else "the training recipe"
    message = detail["msg"].removeprefix("Value error, ")
    return document.problem(f"{name}: {message[:1].lower()}{message[1:]}", path)


def _meant(path: tuple[Any, ...]) -> str:
    """A hint for a misspelt key: the nearest key of a training recipe."""
    names: set[str] = set()
    schema = TrainSpec.model_json_schema()
    for part in [schema, *schema.get("$defs", {}).values()]:
        names |= set(part.get("properties", {}))
    return near_or_known(str(path[-1]), sorted(names))
