"""Flaws that make a JSON Schema unusable, found when it is read: invalid form, outside references, endless loops."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from .budget import CheckGroup, TooMuchWork, check_budget
from .check import draft_of, new_validator
from .patterns import PatternError, compile_pattern

__all__ = ["SchemaFlaw", "find_schema_flaw", "find_size_flaw"]

Path = tuple[str | int, ...]

MAX_DEPTH = 64
MAX_VALUES = 50_000

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = (
    *("items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)
# Keywords whose sub-schemas apply to the same value.
_IN_PLACE = {"anyOf", "oneOf", "allOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"}
_UNKNOWN_REFS = ("$dynamicRef", "$recursiveRef")
_INSIDE = "write what it stands for under '$defs', and refer to that as '#/$defs/NAME'"


class SchemaFlaw(NamedTuple):
    """A flaw of a schema, its path, and a remedy. `at_key`: the flaw is the path's last key."""

    message: str
    path: Path = ()
    hint: str = ""
    at_key: bool = False


class _Reference(NamedTuple):
    path: Path
    target: Any


def find_schema_flaw(schema: Any) -> SchemaFlaw | None:
    """Find the first flaw that prevents checks by this schema, or None. Accesses no file and no network."""
    if (flaw := find_size_flaw(schema)) is not None:
        return flaw
    draft = draft_of(schema)
    if draft is None:
        hint = "leave it out for draft 2020-12; drafts 4, 6, 7 and 2019-09 are known too"
        return SchemaFlaw(f"'$schema' names no known draft: {str(schema['$schema'])[:100]!r}", ("$schema",), hint)
    try:
        with CheckGroup().granting(), check_budget():
            return _form_flaw(schema, draft) or _part_flaw(schema, draft)
    except TooMuchWork:
        return SchemaFlaw("the schema takes too long to check", (), "make it smaller")
    except RecursionError:
        return SchemaFlaw("the schema is nested too deeply", (), "make it flatter")


def find_size_flaw(schema: Any) -> SchemaFlaw | None:
    """Find a flaw of a value that is not a schema, or is too large to check."""
    todo: list[tuple[Path, Any]] = [((), schema)]
    for count, (path, value) in enumerate(_popping(todo)):
        if len(path) > MAX_DEPTH:
            return SchemaFlaw(f"the schema nests deeper than {MAX_DEPTH} levels", path[:3], "make it flatter")
        if count > MAX_VALUES:
            return SchemaFlaw(f"the schema has more than {MAX_VALUES:,} values", (), "make it smaller")
        if isinstance(value, float) and not math.isfinite(value):
            return SchemaFlaw(f"a schema can't hold the number {value}", path)
        if isinstance(value, dict):
            if wrong := next((key for key in value if not isinstance(key, str)), None):
                return SchemaFlaw(f"the key {wrong!r} is not text", path)
            todo += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            todo += [((*path, index), inner) for index, inner in enumerate(value)]
        elif value is not None and not isinstance(value, str | int | float):
            return SchemaFlaw(f"a schema can't hold a {type(value).__name__}", path)
    return None


def _popping(todo: list[tuple[Path, Any]]) -> Iterator[tuple[Path, Any]]:
    while todo:
        yield todo.pop()


def _form_flaw(schema: Any, draft: Any) -> SchemaFlaw | None:
    """Check the schema against its draft's meta-schema."""
    from jsonschema.exceptions import best_match

    problem = best_match(new_validator(draft.META_SCHEMA, draft).iter_errors(_as_lists(schema)))
    if problem is None:
        return None
    return SchemaFlaw(f"this is not a JSON schema: {problem.message}", tuple(problem.absolute_path))


def _as_lists(value: Any) -> Any:
    """Convert the recipe's tuples to lists, which jsonschema requires."""
    if isinstance(value, dict):
        return {key: _as_lists(inner) for key, inner in value.items()}
    return [_as_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def _part_flaw(schema: Any, draft: Any) -> SchemaFlaw | None:
    """Check patterns and references of the schema and of every schema it refers to."""
    from referencing import Registry, Specification
    from referencing.jsonschema import specification_with

    schema = _as_lists(schema)
    named = str(draft.ID_OF(draft.META_SCHEMA))
    dialect: Specification[Any] = specification_with(named)
    resolver = Registry().resolver_with_root(dialect.create_resource(schema))
    again: dict[int, list[_Reference]] = {}  # by schema, references that apply to the same value
    todo: list[tuple[Path, Any, Any]] = [((), schema, resolver)]
    while todo:
        path, part, resolver = todo.pop()
        if not isinstance(part, dict) or id(part) in again:
            continue
        if flaw := _keyword_flaw(path, part):
            return flaw
        again[id(part)] = [_Reference(below, inner) for below, inner in _parts(part, path) if _same(path, below)]
        for below, inner in _parts(part, path):
            inside = resolver.in_subresource(dialect.create_resource(inner)) if isinstance(inner, dict) else resolver
            todo.append((below, inner, inside))
        if "$ref" in part:
            try:
                target = resolver.lookup(part["$ref"])
            except Exception:  # unresolvable in one of the library's ways, or not a URI
                shown = str(part["$ref"])[:100]
                message = f"'$ref' leads out of the schema: {shown!r}"
                return SchemaFlaw(message, (*path, "$ref"), _INSIDE)
            if not isinstance(target.contents, dict | bool):
                return SchemaFlaw(f"'$ref' leads to no schema: {part['$ref'][:100]!r}", (*path, "$ref"), _INSIDE)
            again[id(part)].append(_Reference((*path, "$ref"), target.contents))
            todo.append(((*path, "$ref"), target.contents, target.resolver))
    return _loop_flaw(schema, again)


def _same(path: Path, below: Path) -> bool:
    return below[len(path)] in _IN_PLACE


def _keyword_flaw(path: Path, schema: dict[str, Any]) -> SchemaFlaw | None:
    for key in _UNKNOWN_REFS:
        if key in schema:
            return SchemaFlaw(f"{key!r} is not supported", (*path, key), "write '$ref'", at_key=True)
    patterns = schema.get("patternProperties")
    sources = [((*path, "pattern"), schema["pattern"])] if "pattern" in schema else []
    sources += [((*path, "patternProperties", pattern), pattern) for pattern in patterns or ()]
    for place, source in sources:
        try:
            compile_pattern(source)
        except PatternError as error:
            hint = "patterns are matched in linear time: no look-around, no back references, no huge repetitions"
            return SchemaFlaw(f"the pattern {source[:100]!r} can't be used: {error}", place, hint)
    return None


def _parts(schema: dict[str, Any], path: Path) -> Iterator[tuple[Path, Any]]:
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, dict):
            yield from (((*path, key, name), inner) for name, inner in value.items())
        elif key in _LISTS and isinstance(value, list):
            yield from (((*path, key, index), inner) for index, inner in enumerate(value))
        elif key in _SINGLE:
            yield (*path, key), value


def _loop_flaw(schema: Any, again: dict[int, list[_Reference]]) -> SchemaFlaw | None:
    """Find a reference cycle that never descends into the value: its check would never end."""
    finished: set[int] = set()
    for start in again:
        open_ones, trail = {start}, [(start, iter(again[start]))]
        while trail:
            node, rest = trail[-1]
            step = next(rest, None)
            if step is None:
                trail.pop()
                open_ones.discard(node)
                finished.add(node)
            elif id(step.target) in open_ones:
                return SchemaFlaw(
                    "'$ref' leads back to itself without an end", step.path, "refer to it from a property"
                )
            elif id(step.target) in again and id(step.target) not in finished:
                open_ones.add(id(step.target))
                trail.append((id(step.target), iter(again[id(step.target)])))
    return None
