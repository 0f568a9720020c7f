"""The recipe's JSON Schema, for editors."""

import json
from functools import cache
from typing import Any

from .spec import GraphSpec

__all__ = ["recipe_schema", "schema_text"]


@cache
def _schema() -> dict[str, Any]:
    schema = GraphSpec.model_json_schema(by_alias=True)
    for section in schema["properties"].values():
        if "patternProperties" in section:
            # Without this, editors would accept names that don't match the pattern.
            ((pattern, value),) = section.pop("patternProperties").items()
            section["propertyNames"]["pattern"] = pattern
            section["additionalProperties"] = value
    models = schema["properties"]["models"]["additionalProperties"]
    models["anyOf"] = models.pop("oneOf")  # `{source: ollama/llama3.2}` is in the form of both kinds of model
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A cachegraph recipe"}
    return {**head, **{key: value for key, value in schema.items() if key != "title"}}


def recipe_schema() -> dict[str, Any]:
    """Return the schema of recipe version 1. Treat it as read-only."""
    return _schema()


def schema_text() -> str:
    """Return the text of the schema file that recipes refer to."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
