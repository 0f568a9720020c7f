"""Narrows a JSON Schema to one whose grammar writes only replies that pass the check when they are read.

llguidance's grammars allow `1e999` where a schema leaves numbers open, and misread exclusive bounds within one whole
number: with `exclusiveMinimum: 0` and `exclusiveMaximum: 0.5` they allow 0. So every number gets inclusive bounds on
both sides, and every place that a schema leaves open gets its own schema.
"""

import math
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeGuard

__all__ = ["CONTROL", "LARGEST", "NOTES", "closed", "count_of_states", "has_number", "nesting", "sub_schemas"]

Path = tuple[str | int, ...]

LARGEST = Decimal(10**15)  # of numbers; digits behind it would be lost in a double
LARGEST_INTEGER = 10**18
NEAREST = Decimal("1e-9")  # to a bound that a number must not reach
OPEN_DEPTH = (4, 12)  # levels of lists and objects where a schema leaves open what may be there

MAPS = ("properties", "patternProperties", "$defs", "definitions")  # of schemas
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = ("items", "additionalProperties")
NOTES = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$comment", "$schema", "$id", "$anchor"),
}
CONTROL = {chr(code) for code in range(32)} - set("\b\t\n\f\r") | {"\x7f"}  # what no grammar writes into a text
_ELSEWHERE = {"$ref", "enum", "const", "anyOf", "oneOf", "allOf"}  # they say by themselves what may be there
_ANY = "any-value-of-{}-levels"


def sub_schemas(schema: dict[str, Any]) -> Iterator[tuple[Path, Any]]:
    """The schemas directly inside one, with the keys that lead there."""
    for key, value in schema.items():
        if key in SINGLE:
            yield (key,), value
        elif key in MAPS and isinstance(value, dict):
            yield from (((key, name), inner) for name, inner in value.items())
        elif key in LISTS and isinstance(value, list | tuple):
            yield from (((key, index), inner) for index, inner in enumerate(value))


def nesting(schema: Any) -> int:
    """How many schemas stand inside each other."""
    below = [nesting(inner) for _, inner in sub_schemas(schema)] if isinstance(schema, dict) else []
    return 1 + max(below, default=0)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema whose grammar writes nothing that the given one refuses. Raises RecursionError."""
    depth = min(max(OPEN_DEPTH[0], nesting(schema)), OPEN_DEPTH[1])
    out: dict[str, Any] = _closed(schema, {"$ref": f"#/$defs/{_ANY.format(depth)}"})
    definitions = out.get("$defs")
    if not isinstance(definitions, dict | None):
        return out
    return {**out, "$defs": {**(definitions or {}), **_open_values(depth)}}


def _closed(schema: Any, anything: dict[str, Any]) -> Any:
    if schema is True:
        return anything
    if not isinstance(schema, dict):
        return schema
    out = {key: _closed_part(key, value, anything) for key, value in schema.items() if key not in NOTES}
    if not _ELSEWHERE & out.keys():
        types = out.get("type")
        types = [types] if isinstance(types, str) else types
        if types is None or "array" in types:
            out.setdefault("items", anything)
        if types is None or "object" in types:
            out.setdefault("additionalProperties", anything)
        if types is None or "number" in types or "integer" in types:
            _bound(out, integers=types is not None and "number" not in types)
    elif any(key in out for key in ("exclusiveMinimum", "exclusiveMaximum")):
        _include_bounds(out, integers=False)
    return out


def _closed_part(key: str, value: Any, anything: dict[str, Any]) -> Any:
    if key in SINGLE:
        return _closed(value, anything)
    if key in MAPS and isinstance(value, dict):
        return {name: _closed(inner, anything) for name, inner in value.items()}
    if key in LISTS and isinstance(value, list | tuple):
        return [_closed(inner, anything) for inner in value]
    return value


def _open_values(depth: int) -> dict[str, Any]:
    """Definitions of any value up to a number of levels. None refers to itself: such definitions don't intersect."""
    found = {}
    for level in range(depth + 1):
        types = ["null", "boolean", "string", "number", *(["array", "object"] if level else [])]
        inner = {"$ref": f"#/$defs/{_ANY.format(level - 1)}"}
        inside = {"items": inner, "additionalProperties": inner} if level else {}
        bounds = {"minimum": -int(LARGEST), "maximum": int(LARGEST)}
        found[_ANY.format(level)] = {"type": types, **bounds, **inside}
    return found


def _bound(schema: dict[str, Any], *, integers: bool) -> None:
    """Give numbers bounds on both sides, and inclusive ones."""
    _include_bounds(schema, integers=integers)
    limit = LARGEST_INTEGER if integers else int(LARGEST)
    factor = schema.get("multipleOf")
    if _is_number(factor) and not integers:
        decimals = max(-int(_exact(factor).normalize().as_tuple().exponent), 0)
        limit = int(LARGEST / 10**decimals) or 1
    for key, bound, narrower in (("minimum", -limit, max), ("maximum", limit, min)):
        given = schema.get(key, bound)
        schema[key] = narrower(given, bound) if _is_number(given) else given


def count_of_states(factor: float) -> int:
    """How many states recognize multiples of a factor: one for each remainder, in units of its last decimal."""
    exact = _exact(factor)
    return int(abs(exact).scaleb(max(-int(exact.normalize().as_tuple().exponent), 0))) if exact else 0


def has_number(schema: dict[str, Any]) -> bool:
    """Whether a number may be what such a schema of numbers says. llguidance comes to a dead end where it does not."""
    integers = schema.get("type") in ("integer", ["integer"], ("integer",))
    bounded = dict(schema)
    _bound(bounded, integers=integers)
    low, high, factor = (bounded.get(key) for key in ("minimum", "maximum", "multipleOf"))
    if not (_is_number(low) and _is_number(high)):
        return True
    step = Fraction(_exact(factor)) if _is_number(factor) else Fraction(0)
    if integers:
        step = Fraction(step.numerator or 1)  # the least whole multiple
    least, most = Fraction(_exact(low)), Fraction(_exact(high))
    return least <= most if not step else -(-least // step) * step <= most


def _include_bounds(schema: dict[str, Any], *, integers: bool) -> None:
    """Bounds that must not be reached become bounds that may be: the next whole number, or one near enough."""
    for exclusive, inclusive, sign, narrower in (
        ("exclusiveMinimum", "minimum", 1, max),
        ("exclusiveMaximum", "maximum", -1, min),
    ):
        bound = schema.get(exclusive)
        if not _is_number(bound):
            continue
        del schema[exclusive]
        exact = _exact(bound)
        if integers:
            near: float | int = math.floor(exact) + 1 if sign > 0 else math.ceil(exact) - 1
        else:
            near = float(exact + sign * max(NEAREST, Decimal(10) ** (exact.adjusted() - 14 if exact else -9)))
        given = schema.get(inclusive, near)
        schema[inclusive] = narrower(given, near) if _is_number(given) else given


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _exact(value: float) -> Decimal:
    return Decimal(value) if isinstance(value, int) else Decimal(repr(value))
