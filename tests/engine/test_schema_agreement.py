"""What a schema's grammar writes, its checker accepts, and the other way round, over schemas made at random.

No model takes part: the grammar's bytes are drawn at random, so that every corner of it is reached. Counts are printed.
"""

import json
import random
from collections.abc import Callable
from time import monotonic
from typing import Any

import numpy as np
import pytest
from fuzz_counts import cases, report, seconds
from llguidance import LLMatcher

from cachegraph.agents.structured_output import parse_reply
from cachegraph.engine.sampling.json_schema import find_flaw, to_grammar
from cachegraph.engine.sampling.text_formats import byte_tokenizer
from cachegraph.errors import ModelError

SECONDS = seconds(4.0)  # of each test here
LONGEST = 300  # bytes of a reply
TEXTS = ["", "a", "ab", "é", "😀", "x1", "A B", "2024-02-29", "10.0.0.1", "a@b.c", '"\\', "line\nend", "\ud7ff"]
NUMBERS = [0, 1, -1, 2, 3, 7, 10, 0.5, -0.5, 0.05, 1.5, 2.5, -1.5, 0.1, 100, 1e-3, 12345.678, 1e14, -1e14]
PATTERNS = [
    *("^a", "b$", "^[a-f]{2}$", r"^\d{1,3}$", r"^\p{L}{1,9}$", r"\W", r"^\S+$", r"^[^\d\s]{1,4}$", "(?i)^ab?$", "a|^b"),
    *(
        "^.{1,3}$",
        r"^\w+$",
        "",
        r"^\D$",
        "[^a]",
        r"^[\x00-\x7f]{2}$",
        r"^(red|green)( (dark|light))?$",
        r"^-?\d+\.\d{2}$",
    ),
]
FORMATS = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
NAMES = ["a", "b", "é", 'q"', "a b", "$ref", "type"]


def schema_of(rng: random.Random, depth: int = 3) -> Any:
    """A schema with any of the keywords that can be enforced, most of them satisfiable."""
    makers: list[Callable[[random.Random, int], Any]] = [_number, _number, _text, _text, _choice, _open]
    makers += [_object, _object, _list, _list, _any_of, _all_of, _one_of] if depth else []
    return rng.choice(makers)(rng, depth - 1)


def _number(rng: random.Random, _: int) -> Any:
    out: dict[str, Any] = rng.choice([{"type": "number"}, {"type": "number"}, {"type": "integer"}, {}])
    low, high = sorted(rng.sample(NUMBERS, 2))
    for key, bound in ((("minimum", "exclusiveMinimum"), low), (("maximum", "exclusiveMaximum"), high)):
        if rng.random() < 0.6:
            out[rng.choice(key)] = bound
    return out | ({"multipleOf": rng.choice([7, 0.5, 0.1, 0.25, 3, 0.01, 2.5, 0.3])} if rng.random() < 0.3 else {})


def _text(rng: random.Random, _: int) -> Any:
    out: dict[str, Any] = {"type": "string"} if rng.random() < 0.8 else {}
    if rng.random() < 0.4:
        out["pattern"] = rng.choice(PATTERNS)
    if rng.random() < 0.2:
        out["format"] = rng.choice(FORMATS)
    low, high = sorted(rng.choices(range(6), k=2))
    return out | rng.choice([{}, {"minLength": low}, {"maxLength": high}, {"minLength": low, "maxLength": high}])


def _choice(rng: random.Random, _: int) -> Any:
    leaves = [*TEXTS, *NUMBERS, None, True, False, [], [1, "a"], {"b": 1, "a": [2.0]}]
    return rng.choice([{"enum": rng.sample(leaves, rng.randint(1, 4))}, {"const": rng.choice(leaves)}])


def _open(rng: random.Random, _: int) -> Any:
    kinds = ["null", "boolean", "integer", "number", "string", "array", "object"]
    return rng.choice([{}, True, {"type": rng.choice(kinds)}, {"type": rng.sample(kinds, 2)}, {"title": "Any"}])


def _object(rng: random.Random, depth: int) -> Any:
    names = rng.sample(NAMES, rng.randint(0, 3))
    out: dict[str, Any] = {"type": "object"} if rng.random() < 0.8 else {}
    out["properties"] = {name: schema_of(rng, depth) for name in names}
    out["required"] = rng.sample(NAMES, rng.randint(0, 1)) + names[: rng.randint(0, 2)]
    if rng.random() < 0.6:
        out["additionalProperties"] = rng.choice([False, False, True, schema_of(rng, 0)])
    if rng.random() < 0.2:
        out["patternProperties"] = {rng.choice(PATTERNS): schema_of(rng, 0)}
    if rng.random() < 0.2:
        out[rng.choice(["minProperties", "maxProperties"])] = rng.randint(0, 3)
    return out


def _list(rng: random.Random, depth: int) -> Any:
    out: dict[str, Any] = {"type": "array", "maxItems": rng.randint(0, 3)}
    if rng.random() < 0.7:
        out["items"] = schema_of(rng, depth)
    if rng.random() < 0.3:
        out["prefixItems"] = [schema_of(rng, 0) for _ in range(rng.randint(1, 2))]
    return out | ({"minItems": rng.randint(0, 2)} if rng.random() < 0.4 else {})


def _any_of(rng: random.Random, depth: int) -> Any:
    return {"anyOf": [schema_of(rng, depth), schema_of(rng, depth)]}


def _all_of(rng: random.Random, depth: int) -> Any:
    make = rng.choice([_number, _text, _object, _list])
    return {"allOf": [make(rng, depth), make(rng, depth)], **rng.choice([{}, {"type": "object"}, {"minimum": 0}])}


def _one_of(rng: random.Random, depth: int) -> Any:
    kinds = rng.sample(["a", "b", "c"], 2)
    parts = [
        {"type": "object", "properties": {"k": {"const": kind}, "v": schema_of(rng, 0)}, "required": ["k"]}
        for kind in kinds
    ]
    return rng.choice([{"oneOf": parts}, {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]}])


def with_definitions(rng: random.Random) -> Any:
    """A schema, one part of it by reference, at times to the whole."""
    schema = schema_of(rng)
    if not isinstance(schema, dict) or rng.random() < 0.7:
        return schema if isinstance(schema, dict) else {}
    part = {"$ref": rng.choice(["#/$defs/part", "#/$defs/part", "#"])}
    outer: dict[str, Any] = rng.choice(
        [{"items": part, "maxItems": 1}, {"properties": {"a": part}}, {"anyOf": [part, {"type": "null"}]}]
    )
    return {**outer, "$defs": {"part": schema}}


def grammar_of(schema: dict[str, Any]) -> Any:
    matcher = LLMatcher(byte_tokenizer(), to_grammar(json.dumps(schema)))
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def sample(rng: random.Random, matcher: Any) -> str | None:
    """A reply that the grammar allows, byte by byte, at the end as soon as may be; None where it grows too long."""
    matcher, out = matcher.deep_copy(), bytearray()
    while len(out) < LONGEST:
        if matcher.is_accepting() and (matcher.is_stopped() or rng.random() < 0.3):
            return out.decode()
        bits = np.zeros((byte_tokenizer().vocab_size + 31) // 32, dtype=np.int32)
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        assert not matcher.is_error(), matcher.get_error()
        allowed = [each for each in np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")) if each < 256]
        assert allowed or matcher.is_accepting(), f"nothing may follow {bytes(out)!r}"
        if not allowed:
            return out.decode()
        ends = [each for each in allowed if chr(each) in '"]}' or (chr(each) in ",:" and len(out) < 60)]
        byte = int(rng.choice(ends if ends and rng.random() < 0.4 else allowed))
        matcher.consume_token(byte)
        out.append(byte)
    return None


def accepts(matcher: Any, text: str) -> bool:
    matcher = matcher.deep_copy()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and bool(matcher.is_accepting())


def test_what_a_grammar_writes_passes_its_schema() -> None:
    rng, end = random.Random(7), monotonic() + SECONDS
    schemas = refused = replies = long = 0
    while monotonic() < end and schemas < cases(1500):
        schema = with_definitions(rng)
        schemas += 1
        if find_flaw(schema) is not None:
            refused += 1
            continue
        matcher = grammar_of(schema)
        for _ in range(6):
            text = sample(rng, matcher)
            long += text is None
            if text is not None:
                replies += 1
                parse_reply("a", text, schema)
    report("replies that a grammar writes", {"passed": replies, "too long": long, "schemas refused": refused})
    assert replies > refused


def value_of(rng: random.Random, schema: Any, depth: int = 4) -> Any:
    """A value that a schema without intersections is likely to accept, its names in the schema's order."""
    if not isinstance(schema, dict) or depth == 0:
        return rng.choice([None, True, 1, "a"])
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return value_of(rng, rng.choice(schema["anyOf"]), depth - 1)
    types = schema.get("type")
    if types is None:
        types = "object" if "properties" in schema else rng.choice(["string", "number", "null"])
    kind = types if isinstance(types, str) else rng.choice(types)
    if kind == "object":
        names = [name for name in schema.get("properties", {}) if name in schema["required"] or rng.random() < 0.5]
        return {name: value_of(rng, schema["properties"][name], depth - 1) for name in names}
    if kind == "array":
        items, least = schema.get("items", {}), schema.get("minItems", 0)
        return [value_of(rng, items, depth - 1) for _ in range(rng.randint(least, least + 2))]
    leaves: dict[str, list[Any]] = {
        "null": [None],
        "boolean": [True, False],
        "string": TEXTS,
        "integer": [0, 1, 3, 7, -14, 100],
    }
    return rng.choice(leaves.get(kind, [*NUMBERS, 0.3, 0.75, 14, 0.000001]))


def plain(value: Any) -> Any:
    """The value with whole numbers as such: a grammar writes 1, never 1.0, for the number one."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def test_what_a_schema_accepts_its_grammar_can_write() -> None:
    """Promised for compact JSON, names in the schema's order, numbers as in docs/guides/structured.md.

    A grammar writes multiples of 0.25 with both decimals (0.50), so those are not held to the shortest form.
    """
    rng, end = random.Random(11), monotonic() + SECONDS
    schemas = accepted = refused = 0
    while monotonic() < end and schemas < cases(2000):
        make = rng.choice([_number, _text, _choice, _object, _list, _any_of])
        schema = make(rng, 2)
        schemas += 1
        left_out = ("allOf", "oneOf", "patternProp", "prefixItems", '"multipleOf": 0.25')
        if any(word in json.dumps(schema) for word in left_out):
            continue
        if find_flaw(schema) is not None:
            continue
        matcher = grammar_of(schema)
        for _ in range(8):
            text = json.dumps(plain(value_of(rng, schema)), ensure_ascii=False, separators=(",", ":"))
            if "e-" in text or "e+" in text or "00000000000" in text:
                continue
            try:
                parse_reply("a", text, schema)
            except ModelError:
                refused += 1
                assert not accepts(matcher, text), (schema, text)
                continue
            accepted += 1
            assert accepts(matcher, text), (schema, text)
    report("values that a schema judges", {"accepted by both": accepted, "refused by both": refused})
    assert accepted > schemas


@pytest.mark.parametrize("low", [0, 1, -1, 10, 0.5, -10, 100, 12, -0.5])
@pytest.mark.parametrize("kind", ["number", "integer"])
def test_numbers_are_bounded_as_they_are_checked(kind: str, low: float) -> None:
    rng = random.Random(3)
    for high in (low + 0.05, low + 0.5, low + 1, low + 1.5, low + 10):
        for keys in (("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum"), ("exclusiveMinimum", "maximum")):
            schema = {"type": kind, keys[0]: low, keys[1]: high}
            if find_flaw(schema) is not None:
                assert kind == "integer" or low == high
                continue
            matcher = grammar_of(schema)
            texts = [sample(rng, matcher) for _ in range(5)]
            texts += [
                each for each in (str(low), str(high), f"{low}.0", f"{high}0", "-0", "0.0") if accepts(matcher, each)
            ]
            for text in texts:
                if text is not None:
                    parse_reply("a", text, schema)
