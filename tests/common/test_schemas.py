"""JSON Schemas of strangers: nothing is fetched, nothing runs away, and flaws are found when they are read."""

import socket
from typing import Any

import jsonschema
import pytest

from cachegraph.common.schemas import find_mismatch, find_schema_flaw
from cachegraph.errors import RecipeError
from cachegraph.graph.recipe.load import parse_recipe

RECIPE = """version: 1
name: t
inputs:
  x: {type: list, default: [1], schema: %s}
agents: {a: {model: m, prompt: "{{ x|tojson }}"}}
output: a
"""
DOUBLING = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)} | {"a40": {"type": "string"}}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    "schema",
    [
        '{items: {$ref: "http://127.0.0.1:38999/secret.json"}}',
        '{items: {$ref: "file:///etc/hostname"}}',
        '{$id: "http://127.0.0.1:38999/", items: {$ref: "secret.json"}}',
        '{$id: "file:///etc/", $ref: "hostname"}',
        '{$ref: "secret.json"}',
        '{$ref: "https://json-schema.org/draft/2020-12/schema"}',
        '{$defs: {a: {not: {$ref: "//127.0.0.1/x"}}}}',
        '{if: {$ref: "http://127.0.0.1/x#/a"}}',
        '{contains: {$ref: "ftp://127.0.0.1/x"}}',
        '{patternProperties: {"^a": {$ref: "http://["}}}',
        '{dependentSchemas: {a: {$ref: "data:,1"}}}',
        '{$schema: "http://json-schema.org/draft-07/schema#", dependencies: {a: {$ref: "http://127.0.0.1/x"}}}',
        '{$schema: "http://json-schema.org/draft-04/schema#", id: "http://127.0.0.1/", items: [{$ref: "x"}]}',
        '{$ref: "#/default/inner", default: {inner: {$ref: "http://127.0.0.1/x"}}}',
    ],
)
@pytest.mark.usefixtures("no_network")
def test_a_reference_that_leaves_the_schema_is_refused_at_its_line_and_nothing_is_fetched(schema: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE % schema, "r.yaml")
    (problem,) = caught.value.problems
    assert "leads out of the schema" in problem.message
    assert problem.line == 4
    assert problem.column > 20


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "#"}, "without an end"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "without an end"),
        ({"anyOf": [{"if": {"$ref": "#"}}]}, "without an end"),
        ({"dependentSchemas": {"a": {"oneOf": [{"$ref": "#"}]}}}, "without an end"),
        ({"$ref": "#/nowhere"}, "leads out"),
        ({"$ref": "#/type", "type": "string"}, "leads to no schema"),
        ({"$dynamicRef": "#a"}, "not supported"),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, "no known draft"),
        ({"$schema": 7}, "no known draft"),
        ({"type": "strin"}, "not a JSON schema"),
        ({"required": "a"}, "not a JSON schema"),
        ({"items": [{"type": "string"}]}, "not a JSON schema"),
        ({"pattern": "(?=a)"}, "look-around"),
        ({"pattern": r"(a)\1"}, "backreferences"),
        ({"pattern": "(a{1000}){1000}{1000}"}, "pattern"),
        ({"pattern": "a" * 3000}, "longer than"),
        ({"pattern": "\ud83d"}, "half a surrogate"),
        ({"patternProperties": {"(": True}}, "unclosed group"),
        ({"minimum": float("inf")}, "can't hold the number"),
        ({"const": float("nan")}, "can't hold the number"),
        ({"enum": [b"bytes"]}, "can't hold a bytes"),
        ({1: 2}, "not text"),
        ({"enum": list(range(60_000))}, "more than 50,000"),
    ],
)
def test_a_schema_that_can_not_be_used_is_refused_with_its_reason(schema: Any, words: str) -> None:
    flaw = find_schema_flaw(schema)
    assert flaw is not None
    assert words in flaw.message


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"not": schema}
    assert "deeper than" in str(find_schema_flaw(schema))


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$ref": "#/$defs/a0", "$defs": DOUBLING}, "x"),
        ({"$ref": "#/$defs/a0", "$defs": DOUBLING, "unevaluatedProperties": False}, {"a": 1}),
        ({"anyOf": [{"type": "string"}] * 1000}, ["x" * 100] * 100_000),
        ({"items": {"enum": [f"{i}" * 50 for i in range(1000)]}}, ["y"] * 10_000),
        ({"items": {"pattern": "(x{300}){30}"}}, ["x" * 9000] * 1000),
        ({"contains": {"contains": {"const": "z" * 1000}}}, [["z" * 999] * 3000] * 100),
    ],
)
def test_a_costly_check_ends_with_a_reason(schema: Any, value: Any) -> None:
    assert find_schema_flaw(schema) is None
    wrong = find_mismatch(schema, value)
    assert wrong is not None
    assert "steps" in wrong.message


def test_a_pattern_that_backtracks_is_matched_at_once() -> None:
    assert find_mismatch({"pattern": "^(a|a)*(a+)+$"}, "a" * 100_000 + "b") is not None


def test_objects_in_a_long_unique_list_are_compared_in_linear_time() -> None:
    assert find_mismatch({"uniqueItems": True}, [{"a": i} for i in range(20_000)]) is None
    assert find_mismatch({"uniqueItems": True}, [{"a": 1, "b": 2}, {"b": 2.0, "a": 1}]) is not None


def test_a_value_nested_without_end_is_a_reason() -> None:
    value: list[Any] = []
    for _ in range(900):
        value = [value]
    wrong = find_mismatch({"items": {"$ref": "#"}}, value)
    assert wrong is not None
    assert "nested" in wrong.message


def test_an_inner_schema_of_another_draft_is_checked_with_the_same_budget() -> None:
    inner = {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(a+)+$"}
    assert find_mismatch({"items": inner}, ["a" * 50 + "b"]) is not None


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"multipleOf": 0.1}, 0.3),
        ({"multipleOf": 1e-300}, 1e308),
        ({"multipleOf": 0.5}, 10**4000),
        ({"enum": [1]}, 1.0),
        ({"$ref": "item", "$defs": {"a": {"$id": "item", "type": "string"}}}, "x"),
        ({"properties": {"next": {"$ref": "#"}}}, {"next": {"next": {}}}),
        ({"properties": {"$ref": {"type": "string"}}}, {"$ref": "http://nowhere/"}),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}, ["x"]),
        ({"pattern": r"^\d{4}-\d\d$"}, "2026-11"),
    ],
)
def test_what_fits_fits(schema: Any, value: Any) -> None:
    assert find_schema_flaw(schema) is None
    assert find_mismatch(schema, value) is None


VALUES: list[Any] = [None, True, 0, 1, 1.5, "", "ab", [], [1, "a", 1], {}, {"a": 1}, {"a": "x", "b": [2]}]
SCHEMAS: list[Any] = [
    *({"type": kind} for kind in ("string", "integer", "number", "array", "object", "null", "boolean")),
    *({"enum": [1, "ab", None]}, {"const": {"a": 1}}, {"uniqueItems": True}, {"multipleOf": 0.5}),
    *({"pattern": "^a"}, {"patternProperties": {"a": {"type": "integer"}}}, {"not": {"type": "string"}}),
    {"properties": {"a": {"type": "integer"}}, "additionalProperties": False},
    {"properties": {"a": True}, "unevaluatedProperties": False},
    *({"anyOf": [{"type": "string"}, {"minimum": 1}]}, {"oneOf": [{"type": "number"}, {"minimum": 1}]}),
    *({"if": {"type": "string"}, "then": {"minLength": 1}}, {"contains": {"const": 1}, "maxContains": 1}),
    *({"prefixItems": [{"type": "integer"}], "items": {"type": "string"}}, {"required": ["a"]}, {"minItems": 1}),
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_the_paid_keywords_judge_as_the_library_does(schema: Any) -> None:
    for value in VALUES:
        expected = jsonschema.Draft202012Validator(schema).is_valid(value)
        assert (find_mismatch(schema, value) is None) == expected, value
