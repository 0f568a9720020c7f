"""JSON schemas that a reply can be held to while it is written. Knows no torch: recipes are checked with this.

llguidance turns a schema into a grammar and refuses what it can't enforce; but it passes over words that it doesn't
know, a misspelt one too, so those are looked for here. What is refused is refused as the recipe is read, never ignored.
"""

import difflib
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

__all__ = ["Flaw", "find_flaw", "to_grammar"]

Path = tuple[str | int, ...]

_MAPS = ("properties", "patternProperties", "$defs", "definitions")  # of schemas
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
_ENFORCED = {
    *(*_MAPS, *_LISTS, *_SINGLE, "$ref", "type", "enum", "const", "required", "format", "pattern", "multipleOf"),
    *("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
_NOTES = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$comment", "$schema", "$id", "$anchor"),
}
_REMEDIES = {
    "not": "say what may be there instead",
    "if": "write the cases with 'anyOf'",
    "then": "write the cases with 'anyOf'",
    "else": "write the cases with 'anyOf'",
    "uniqueItems": "remove it, or list what may be there with 'enum'",
    "additionalItems": "write 'prefixItems' and 'items'",
}
# Compact JSON, or with a space where most of what models have read has one; else a model may write spaces for ever.
_LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


class Flaw(NamedTuple):
    """Why a schema can't be enforced, where in it, and what to do."""

    message: str
    path: Path = ()
    hint: str = ""
    at_key: bool = False


def find_flaw(schema: dict[str, Any]) -> Flaw | None:
    """The first reason why replies can't be held to this schema, or None."""
    for path, each in _schemas(schema):
        for key, value in each.items():
            if flaw := _flaw_of(key, value):
                return flaw._replace(path=(*path, key), at_key=True)
    reason = _refusal(schema)
    if reason is None:
        return None
    # The innermost part that is refused by itself tells where.
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions", "$schema") if key in schema}
    parts = [path for path, each in _schemas(schema) if path and _refusal({**shared, **each}) is not None]
    path = max(parts, key=len, default=())
    reason = _refusal({**shared, **_at(schema, path)}) or reason
    return Flaw(f"the schema can't be enforced: {reason}", path)


@lru_cache(maxsize=256)
def to_grammar(schema: str) -> str:
    """What llguidance reads, from a schema as JSON text."""
    from llguidance import LLMatcher

    grammar: str = LLMatcher.grammar_from_json_schema(schema, overrides=_LAYOUT)
    return grammar


def _flaw_of(key: str, value: Any) -> Flaw | None:
    if key == "items" and isinstance(value, list):
        return Flaw("'items' must be one schema for all items", hint="write the list as 'prefixItems'")
    if key.startswith("exclusive") and isinstance(value, bool):
        return Flaw(f"{key!r} must be a number", hint=f"write the bound itself: '{key}: 0'")
    if key in _ENFORCED or key in _NOTES:
        return None
    if key in _REMEDIES:
        return Flaw(f"{key!r} can't be enforced while a reply is written", hint=_REMEDIES[key])
    close = difflib.get_close_matches(key[:100], [*_ENFORCED, *_NOTES], 1)
    hint = f"did you mean {close[0]!r}?" if close else "remove it"
    return Flaw(f"{key!r} is no word of a JSON schema that can be enforced", hint=hint)


def _schemas(schema: Any, path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The schema and all schemas in it, outermost first, with the keys that lead there."""
    todo: list[tuple[Path, Any]] = [(path, schema)]
    while todo:
        path, each = todo.pop(0)
        if not isinstance(each, dict):
            continue
        yield path, each
        for key, value in each.items():
            if key in _SINGLE:
                todo.append(((*path, key), value))
            elif key in _MAPS and isinstance(value, dict):
                todo += [((*path, key, name), inner) for name, inner in value.items()]
            elif key in _LISTS and isinstance(value, list | tuple):
                todo += [((*path, key, index), inner) for index, inner in enumerate(value)]


def _at(schema: Any, path: Path) -> dict[str, Any]:
    for part in path:
        schema = schema[part]
    return schema  # type: ignore[no-any-return]


def _refusal(schema: dict[str, Any]) -> str | None:
    """llguidance's own reason, or None."""
    from llguidance import LLMatcher

    try:
        grammar = to_grammar(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    said = "".join(char if char.isprintable() else " " for char in " ".join(messages))
    return " ".join(said.split())[:300] if wrong else None
