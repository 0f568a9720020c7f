"""Schemas are refused for what can't be enforced, at the place where it stands."""

from typing import Any

import pytest

from cachegraph.engine.json_schema import find_flaw

KIND = {"type": "string", "enum": ["bug", "idea"]}
FINE: list[dict[str, Any]] = [
    {},
    {"type": "object", "properties": {"kind": KIND}, "required": ["kind"], "additionalProperties": False},
    {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 3, "title": "Numbers", "default": []},
    {"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"},
    {"type": "object", "properties": {"pattern": {"type": "string"}, "anything": {"const": {"propertys": 1}}}},
]


@pytest.mark.parametrize("schema", FINE)
def test_what_can_be_enforced_has_no_flaw(schema: dict[str, Any]) -> None:
    assert find_flaw(schema) is None


@pytest.mark.parametrize(
    ("schema", "message", "path", "hint"),
    [
        ({"type": "object", "propertys": {}}, "'propertys' is no word", ("propertys",), "did you mean 'properties'?"),
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
        ({"properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}, "look-around", ("properties", "a"), ""),
        ({"$ref": "https://example.com/schema"}, "not fetch", (), ""),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "does not exist", ("properties", "a"), ""),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater than maximum (3)", (), ""),
        ({"items": [KIND]}, "one schema for all items", ("items",), "write the list as 'prefixItems'"),
        (
            {"type": "number", "exclusiveMinimum": True},
            "must be a number",
            ("exclusiveMinimum",),
            "write the bound itself: 'exclusiveMinimum: 0'",
        ),
        ({"x-guidance": {"lenient": True}, "uniqueItems": True}, "'x-guidance' is no word", ("x-guidance",), "remove"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf constraints are not supported", (), ""),
        ({"enum": [float("inf")]}, "not JSON compliant", (), ""),
    ],
)
def test_what_cannot_be_enforced_is_named_with_its_place(
    schema: dict[str, Any], message: str, path: tuple[str | int, ...], hint: str
) -> None:
    flaw = find_flaw(schema)
    assert flaw is not None
    assert message in flaw.message
    assert flaw.path == path
    assert hint in flaw.hint
