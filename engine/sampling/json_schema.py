"""The JSON schemas that a reply can be held to while it is written. Needs no torch: recipes are checked with this.

llguidance makes a grammar of a schema and refuses what it can't enforce. It ignores keywords that it doesn't know, such
as misspelt ones, so they are looked for here. A schema is refused when the recipe is read; no part of it is ignored.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from cachegraph.common.did_you_mean import did_you_mean
from cachegraph.common.printable import printable_line
from cachegraph.common.schemas import find_schema_flaw, find_size_flaw

from .closed_schema import (
    CONTROL,
    LARGEST,
    LISTS,
    MAPS,
    NOTES,
    SINGLE,
    closed,
    count_of_states,
    has_number,
    sub_schemas,
)
from .finite_schema import find_endless
from .text_formats import byte_tokenizer, can_begin, limits

__all__ = ["Flaw", "find_flaw", "to_grammar"]

Path = tuple[str | int, ...]

_ENFORCED = {
    *(*MAPS, *LISTS, *SINGLE, "$ref", "type", "enum", "const", "required", "format", "pattern", "multipleOf"),
    *("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# Keywords that may be what a schema is refused for, the likeliest first.
_SUSPECTS = (
    *("pattern", "format", "multipleOf", "$ref", "enum", "const", "oneOf", "anyOf", "allOf", *reversed(_BOUNDS)),
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "required"),
    *("prefixItems", "items", "additionalProperties", "patternProperties", "properties"),
)
_NUMERIC = frozenset(("multipleOf", *_BOUNDS))
_TEXTUAL = frozenset(("format", "pattern", "minLength", "maxLength"))
LONGEST_SEARCH = 20_000_000  # characters that are read again to say which part of a schema is refused
MOST_STATES = 20_000  # of the automaton that recognizes multiples
LARGEST_BOUND = 1 << 53  # of whole numbers: beyond it llguidance's doubles are not exact
_REMEDIES = {
    "not": "say what may be there instead",
    "if": "write the cases with 'anyOf'",
    "then": "write the cases with 'anyOf'",
    "else": "write the cases with 'anyOf'",
    "uniqueItems": "remove it, or list what may be there with 'enum'",
    "additionalItems": "write 'prefixItems' and 'items'",
}
_NO_CONTROL = "leave out control characters other than tabs and line ends"
# Compact JSON, or with a space where most of what models have read has one; else a model may write spaces for ever.
# No \\u escapes: with them the name of a property could be written a second time, past its own schema.
_LAYOUT: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allowed_escapes": '"\\bfnrt',
}


class Flaw(NamedTuple):
    """Why a schema can't be enforced, where in it, and what to do."""

    message: str
    path: Path = ()
    hint: str = ""
    at_key: bool = False


def find_flaw(schema: dict[str, Any]) -> Flaw | None:
    """The first reason why replies can't be held to this schema, or None."""
    if (wrong := find_size_flaw(schema)) is not None:
        return Flaw(*wrong)
    for path, part in _schemas(schema):
        for key, value in part.items():
            if flaw := _flaw_of(key, value, part, path):
                return flaw._replace(path=(*path, key), at_key=True)
        if _NUMERIC & part.keys() - {"minimum", "maximum"} and (flaw := _empty_leaf(part)):
            return flaw._replace(path=(*path, *flaw.path))
        if name := next((name for name in part.get("properties") or () if _unwritable(name)), None):
            return Flaw(f"the name {name!r} can't be written", (*path, "properties", name), _NO_CONTROL, at_key=True)
    reason = _refusal(schema)
    if reason is not None:
        return _refused_part(schema, reason)
    for path, part in _schemas(schema):
        if flaw := _empty_leaf(part):
            return flaw._replace(path=(*path, *flaw.path))
    if (wrong := find_schema_flaw(schema)) is not None:
        return Flaw(*wrong)
    if (endless := find_endless(schema)) is not None:
        return Flaw("no reply can satisfy the schema: what it requires never ends", endless, "require less of it")
    return None


def _refused_part(schema: dict[str, Any], reason: str) -> Flaw:
    """The innermost part that is refused by itself tells where."""
    everything = list(_schemas(schema))
    if len(everything) * len(json.dumps(schema, default=str)) > LONGEST_SEARCH:
        return Flaw(f"the schema can't be enforced: {reason}")
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions", "$schema") if key in schema}
    parts = [path for path, part in everything if path and _refusal({**shared, **part}) is not None]
    path = max(parts, key=len, default=())
    part = _at(schema, path)
    reason = _refusal({**shared, **part}) or reason
    for key in (key for key in _SUSPECTS if key in part):
        if _refusal({**shared, **{name: value for name, value in part.items() if name != key}}) is None:
            return Flaw(f"{key!r} can't be enforced: {reason}", (*path, key), at_key=True)
    return Flaw(f"the schema can't be enforced: {reason}", path)


@lru_cache(maxsize=256)
def to_grammar(schema: str) -> str:
    """What llguidance reads, from a schema as JSON text."""
    from llguidance import LLMatcher

    narrower = json.dumps(closed(json.loads(schema)))
    grammar: str = LLMatcher.grammar_from_json_schema(narrower, overrides=_LAYOUT)
    return grammar


def _flaw_of(key: str, value: Any, schema: dict[str, Any], path: Path) -> Flaw | None:
    if key == "items" and isinstance(value, list):
        return Flaw("'items' must be one schema for all items", hint="write the list as 'prefixItems'")
    if key.startswith("exclusive") and isinstance(value, bool):
        return Flaw(f"{key!r} must be a number", hint=f"write the bound itself: '{key}: 0'")
    if key in _BOUNDS and isinstance(value, int | float):
        return _bound_flaw(key, value, schema)
    if key == "allOf" and isinstance(value, list | tuple):
        factors = [part["multipleOf"] for part in (schema, *value) if isinstance(part, dict) and "multipleOf" in part]
        states = prod(count_of_states(factor) for factor in factors if isinstance(factor, int | float))
        if states > MOST_STATES:
            return Flaw(f"the factors in 'allOf' need more than {MOST_STATES:,} states", hint="leave one of them out")
    if key == "multipleOf" and isinstance(value, int | float) and count_of_states(value) > MOST_STATES:
        message = f"'multipleOf: {value}' needs more states than a grammar may have ({MOST_STATES:,})"
        return Flaw(message, hint="ask for the number of steps instead, and multiply it yourself")
    if key == "minProperties" and isinstance(value, int):
        return _count_flaw(value, schema)
    if key in ("enum", "const") and _unwritable(value):
        return Flaw(f"{key!r} holds a text that can't be written", hint=_NO_CONTROL)
    if key == "$id" and path:
        return Flaw("'$id' of an inner schema is not supported", hint="remove it, and refer to '#/$defs/NAME'")
    if key in _ENFORCED or key in NOTES:
        return None
    if key in _REMEDIES:
        return Flaw(f"{key!r} can't be enforced while a reply is written", hint=_REMEDIES[key])
    hint = did_you_mean(key, [*_ENFORCED, *NOTES], "remove it")
    return Flaw(f"{key!r} is not a keyword of a JSON schema that can be enforced", hint=hint)


def _bound_flaw(key: str, value: float, schema: dict[str, Any]) -> Flaw | None:
    limit = LARGEST_BOUND if schema.get("type") == "integer" else int(LARGEST)
    if abs(value) <= limit:
        return None
    return Flaw(f"{key!r} is beyond {limit:,}, where bounds are not exact", hint="choose a nearer bound")


def _empty_leaf(schema: dict[str, Any]) -> Flaw | None:
    """Numbers and texts that can't be; llguidance notices only when it comes to them."""
    types = schema.get("type")
    if types in ("number", "integer") and _NUMERIC & schema.keys() and not has_number(schema):
        return _no_value("number", _NUMERIC, schema)
    words = {key: schema[key] for key in _TEXTUAL if key in schema}
    if types == "string" and words and not can_begin(json.dumps(words)):
        return _no_value("text", _TEXTUAL, schema)
    return None


def _no_value(kind: str, keys: frozenset[str], schema: dict[str, Any]) -> Flaw:
    found = [key for key in schema if key in keys]
    listed = " and ".join(f"'{key}: {schema[key]}'" for key in found)
    return Flaw(f"no {kind} satisfies {listed}", (found[-1],), "widen one of them", at_key=True)


def _count_flaw(least: int, schema: dict[str, Any]) -> Flaw | None:
    """A grammar counts a name that is written twice as two."""
    required = schema.get("required")
    known = len(set(required)) if isinstance(required, list | tuple) else 0
    if least <= known + 1:
        return None
    return Flaw(f"'minProperties' beyond the required ones and one more ({known + 1})", hint="list them in 'required'")


def _unwritable(value: Any) -> bool:
    """Whether a text in a value has control characters that grammars never write, or half a surrogate pair."""
    if isinstance(value, str):
        return not CONTROL.isdisjoint(value) or any("\ud800" <= char <= "\udfff" for char in value)
    if isinstance(value, dict):
        return any(_unwritable(item) for pair in value.items() for item in pair)
    return isinstance(value, list | tuple) and any(map(_unwritable, value))


def _schemas(schema: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The schema and all schemas in it, outermost first, with the keys that lead there."""
    todo: list[tuple[Path, Any]] = [((), schema)]
    while todo:
        path, node = todo.pop(0)
        if isinstance(node, dict):
            yield path, node
            todo += [((*path, *below), inner) for below, inner in sub_schemas(node)]


def _at(schema: Any, path: Path) -> dict[str, Any]:
    for part in path:
        schema = schema[part]
    return schema  # type: ignore[no-any-return]


def _refusal(schema: dict[str, Any]) -> str | None:
    """llguidance's own reason, or None."""
    from llguidance import LLMatcher

    try:
        grammar = to_grammar(json.dumps(schema, allow_nan=False))
        wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar, byte_tokenizer(), limits=limits())
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    except BaseException as error:  # Rust's panics come as children of BaseException
        if type(error).__name__ != "PanicException":
            raise
        return "llguidance can't read it"
    return printable_line(" ".join(messages))[:300] if wrong else None
