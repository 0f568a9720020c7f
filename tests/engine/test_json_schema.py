"""Schemas are refused for what can't be enforced, at the place where it stands."""

from typing import Any

import pytest

from cachegraph.engine.sampling.json_schema import find_flaw
from cachegraph.engine.sampling.text_formats import fits_format, fits_pattern

KIND = {"type": "string", "enum": ["bug", "idea"]}
NODE = {"$ref": "#/$defs/n"}
FINE: list[dict[str, Any]] = [
    {},
    {"type": "object", "properties": {"kind": KIND}, "required": ["kind"], "additionalProperties": False},
    {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 3, "title": "Numbers", "default": []},
    {"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"},
    {"type": "object", "properties": {"pattern": {"type": "string"}, "anything": {"const": {"propertys": 1}}}},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
    {"type": "string", "pattern": r"^\p{L}{1,9}$"},
    {"type": "integer", "multipleOf": 7},
    {"allOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": True}}]},
    {"$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}, "$ref": "#/$defs/tree"},
    {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://example.org/x", "type": "boolean"},
    {"minProperties": 2, "required": ["a"], "properties": {"a": {}}},
    {"const": "tab\tand\nline"},
]


@pytest.mark.parametrize("schema", FINE)
def test_what_can_be_enforced_has_no_flaw(schema: dict[str, Any]) -> None:
    assert find_flaw(schema) is None


@pytest.mark.parametrize(
    ("schema", "message", "path", "hint"),
    [
        ({"type": "object", "propertys": {}}, "'propertys' is not a", ("propertys",), "did you mean 'properties'?"),
        (
            {"type": "array", "items": {"type": "array", "uniqueItems": True}},
            "'uniqueItems' can't be enforced",
            ("items", "uniqueItems"),
            "or list what may be there with 'enum'",
        ),
        (
            {"anyOf": [KIND, {"if": KIND, "then": KIND}]},
            "'if' can't be enforced",
            ("anyOf", 1, "if"),
            "write the cases with 'anyOf'",
        ),
        (
            {"properties": {"a": {"type": "array", "items": {"type": "strng"}}}},
            "Invalid type: strng",
            ("properties", "a", "items"),
            "",
        ),
        (
            {"properties": {"a": {"type": "string", "pattern": "(?=a)b"}}},
            "look-around",
            ("properties", "a", "pattern"),
            "",
        ),
        ({"$ref": "https://example.com/schema"}, "not fetch", ("$ref",), ""),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "does not exist", ("properties", "a", "$ref"), ""),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater than maximum (3)", ("maximum",), ""),
        ({"items": [KIND]}, "one schema for all items", ("items",), "write the list as 'prefixItems'"),
        (
            {"type": "number", "exclusiveMinimum": True},
            "must be a number",
            ("exclusiveMinimum",),
            "write the bound itself: 'exclusiveMinimum: 0'",
        ),
        ({"x-guidance": {"lenient": True}, "uniqueItems": True}, "'x-guidance' is not a", ("x-guidance",), "remove"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf constraints are not supported", ("oneOf",), ""),
        ({"$ref": "#"}, "leads back to itself", ("$ref",), "from a property"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "itself", ..., ""),
        ({"allOf": [{"anyOf": [{"$ref": "#"}]}]}, "leads back to itself", ..., ""),
        (
            {"$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"], "type": "object"}}, **NODE},
            "never ends",
            ("$defs", "n"),
            "require less",
        ),
        (
            {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1}}, **NODE},
            "never ends",
            ("$defs", "n"),
            "require less",
        ),
        ({"properties": {"a": {"type": "string", "pattern": r"\bfoo"}}}, "", ("properties", "a", "pattern"), ""),
        ({"type": "string", "pattern": "^[a-f]{2}$", "minLength": 5}, "Regex is empty", ("pattern",), ""),
        ({"type": "string", "pattern": "\x01"}, "no text satisfies 'pattern", ("pattern",), "widen"),
        ({"type": "string", "format": "regex"}, "Unknown format", ("format",), ""),
        (
            {"type": "integer", "minimum": 1, "maximum": 2.5, "multipleOf": 0.3},
            "no number satisfies",
            ("multipleOf",),
            "widen",
        ),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e-9}, "no number satisfies", ..., "widen"),
        ({"type": "number", "minimum": 1e300}, "beyond 1,000,000,000,000,000", ("minimum",), "nearer"),
        ({"type": "integer", "minimum": 2**53 + 1}, "beyond 9,007,199,254,740,992", ("minimum",), "nearer"),
        ({"items": {"type": "number", "multipleOf": 1e-20}}, "", ("items", "multipleOf"), ""),
        ({"items": {"multipleOf": 86400}}, "more states than", ("items", "multipleOf"), "number of steps"),
        ({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}, "factors in 'allOf'", ("allOf",), "leave one"),
        ({"const": "a\x00"}, "can't be written", ("const",), "control characters"),
        ({"enum": ["ok", {"a": ["\x7f"]}]}, "can't be written", ("enum",), "control characters"),
        ({"properties": {"a\x1b": {}}}, "can't be written", ("properties", "a\x1b"), "control characters"),
        ({"minProperties": 2}, "beyond the required ones", ("minProperties",), "'required'"),
        (
            {"$defs": {"a": {"$id": "x", "type": "null"}}},
            "'$id' of an inner schema",
            ("$defs", "a", "$id"),
            "remove it",
        ),
        ({"$anchor": "a", "items": {"$ref": "#a"}}, "", ..., ""),
        ({"$schema": "https://example.org/my-draft"}, "no known draft", ("$schema",), "leave it out"),
        ({"enum": []}, "empty", ("enum",), ""),
        (
            {"type": "object", "required": ["a"], "additionalProperties": False},
            "'a' is unsatisfiable",
            ("required",),
            "",
        ),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types", ("allOf",), ""),
        ({"type": "string", "minLength": "5"}, "", ("minLength",), ""),
        ({"enum": [float("nan")]}, "can't hold the number nan", ("enum", 0), ""),
        ({"enum": [float("inf")]}, "can't hold the number inf", ("enum", 0), ""),
    ],
)
def test_what_cannot_be_enforced_is_named_with_its_place(
    schema: dict[str, Any], message: str, path: tuple[str | int, ...], hint: str
) -> None:
    flaw = find_flaw(schema)
    assert flaw is not None
    assert message in flaw.message
    assert path in (..., flaw.path)
    assert hint in flaw.hint


def test_a_schema_as_deep_or_as_large_as_can_be_is_refused_in_time() -> None:
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(5_000):
        deep = {"items": deep}
    doubled: dict[str, Any] = {"type": "null"}
    for _ in range(40):
        doubled = {"anyOf": [doubled, doubled]}
    parts = {f"p{number}": {"$ref": "#/$defs/none"} for number in range(3_000)}
    for schema in (deep, doubled, {"enum": list(range(60_000))}, {"$defs": parts, "properties": parts}):
        flaw = find_flaw(schema)
        assert flaw is not None
        assert "the schema" in flaw.message


def test_patterns_and_formats_are_read_as_grammars_read_them() -> None:
    assert fits_pattern(r"^\d\w$", "1a")
    assert not fits_pattern(r"^\d$", "\u0663")  # an Arabic digit: \\d is ASCII, as in ECMAScript
    assert fits_pattern(r"^\W$", "é")
    assert fits_pattern("b", "abc")
    assert fits_pattern("^.$", "\x00")
    assert fits_pattern("^.$", "\x7f")
    assert not fits_pattern("^a$", "a\n")
    assert fits_format("date", "2024-02-29")
    assert not fits_format("date", "2024-02-30")
    assert not fits_format("ipv4", "256.0.0.1")
    assert not fits_format("email", "a b@c")
