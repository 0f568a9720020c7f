"""Random strangers: whatever they write is taken, or refused in our own words, and soon.

Every test draws its cases from a fixed seed and prints how many it tried and how they ended; `-s` shows it:

    pytest -s -q tests/fuzz

`python benchmarks/fuzzers.py` prints the counts of all fuzzers as a table.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fuzz_counts import cases, report
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from cachegraph.agents.prompt.expression import compile_expression
from cachegraph.agents.prompt.template import TemplateProblem, compile_template
from cachegraph.common.schemas import find_mismatch, find_schema_flaw
from cachegraph.engine.text.chat_template import render_chat_template
from cachegraph.errors import InputError, RecipeError
from cachegraph.graph.data.dataset import read_rows
from cachegraph.graph.recipe.inputs import check_inputs, parse_inputs
from cachegraph.graph.recipe.load import parse_recipe
from cachegraph.graph.recipe.spec import InputSpec

ROOT = Path(__file__).parents[2]
NASTY = [
    *(
        "\x00",
        "\ufeff",
        "\ud83d",
        "\ude00",
        "\u2028",
        "\r\n",
        "\x1b]0;x\x07",
        "\u202e",
        "😀",
        "{{",
        "}}",
        "{% for x in y %}",
    ),
    *("&a", "*a", "!!python/object:os.system", "<<: *a", "|", ">", "\t", "- ", ": ", "#", "'", '"', "[", "]", "{", "}"),
    *("1e999", "-0", ".inf", ".nan", "9" * 5000, "0x7f.1", "1:30", "010", "yes", "null", "~", "../../etc/passwd"),
    *("http://169.254.169.254/", "file:///etc/passwd", "https://x@y:z/", "$ref", "(a+)+$", "__class__"),
]


def _end(what: str, case: Callable[[], str], ends: Counter[str], most: float = 5.0) -> None:
    """Run one case, note how it ended, and see that it ended soon."""
    began = time.thread_time()
    ends[case()] += 1
    assert time.thread_time() - began < most, f"{what} took too long"


def _mutated(text: str, draw: random.Random) -> str:
    """The text with a few pieces cut out, doubled, moved or replaced."""
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(text) + 1)
        end = min(start + draw.choice([0, 1, 1, 5, 40]), len(text))
        piece = draw.choice([*NASTY, "", text[start:end] * 2, text[draw.randrange(len(text) + 1) :][:30]])
        text = text[:start] + piece + text[end:]
    return text


def test_mutated_recipes_are_taken_or_refused_with_their_places() -> None:
    texts = [path.read_text() for path in sorted((ROOT / "recipes").glob("*.yaml")) if path.name != "models.yaml"]
    draw, ends = random.Random(1), Counter[str]()
    for number in range(cases(400)):
        text = _mutated(draw.choice(texts), draw)

        def case(text: str = text) -> str:
            try:
                parse_recipe(text, "r.yaml", ROOT / "recipes")
            except RecipeError:
                return "refused"
            return "taken"

        _end(f"recipe {number}", case, ends)
    report("recipes", ends)
    assert ends["refused"] > 100


def _value(draw: random.Random, depth: int = 0) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(NASTY),
        lambda: draw.choice([0, -1, 10**400, 1.5, float("nan"), float("inf"), True, None]),
        lambda: draw.choice(["", "text", b"bytes", {1, 2}, object]),
        lambda: [_value(draw, depth + 1) for _ in range(draw.randrange(4))],
        lambda: {draw.choice(["a", "b", 1, "\ud83d"]): _value(draw, depth + 1) for _ in range(draw.randrange(4))},
        lambda: _nested(draw.choice([3, 150, 300, 3000])),
    ]
    return draw.choice(kinds[: 3 if depth > 3 else len(kinds)])()


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_inputs_of_any_kind_fit_or_are_input_errors() -> None:
    declared = {
        "text": InputSpec(),
        "list": InputSpec(type="list"),
        "any": InputSpec.model_validate(
            {"schema": {"anyOf": [{"type": "string", "pattern": "^(a+)+$"}, {"items": True}]}}
        ),
    }
    draw, ends = random.Random(2), Counter[str]()
    for number in range(cases(2000)):
        name, value = draw.choice([*declared]), _value(draw)
        text = draw.choice([_mutated(json.dumps({"a": ["x", 1.5]}), draw), "[" * 9000, str(draw.choice(NASTY))])

        def case(name: str = name, value: Any = value, text: str = text) -> str:
            try:
                if value is not None and len(text) % 2:
                    check_inputs({name: declared[name]}, {name: value})
                else:
                    parse_inputs({name: declared[name]}, {name: text})
            except InputError:
                return "refused"
            return "taken"

        _end(f"input {number}", case, ends)
    report("inputs", ends)
    assert min(ends["taken"], ends["refused"]) > 100


def test_data_files_of_any_kind_give_rows_or_input_errors(tmp_path: Path) -> None:
    rows = [{"q": "a, b", "n": 1}, {"q": "😀\n", "n": None}]
    lines = "\n".join(map(json.dumps, rows))
    texts = {"jsonl": lines, "json": json.dumps(rows), "csv": 'q,n\n"a, b",1\nx,2\n', "tsv": "q\tn\na\t1\n"}
    draw, ends = random.Random(3), Counter[str]()
    for number in range(cases(600)):
        kind = draw.choice([*texts])
        raw = bytearray(_mutated(texts[kind], draw).encode("utf-8", "surrogatepass"))
        if draw.random() < 0.3:
            raw[draw.randrange(len(raw) + 1) : 0] = bytes(draw.choices(range(256), k=3))
        file = tmp_path / f"data.{kind}"
        file.write_bytes(raw)

        def case(file: Path = file) -> str:
            try:
                read_rows(file)
            except InputError:
                return "refused"
            return "taken"

        _end(f"data {number}", case, ends)
    report("data files", ends)
    assert min(ends["taken"], ends["refused"]) > 50


def _schema(draw: random.Random, depth: int = 0) -> Any:
    inner = (lambda: _schema(draw, depth + 1)) if depth < 3 else (lambda: draw.choice([True, {}, {"type": "string"}]))
    parts: dict[str, Callable[[], Any]] = {
        "type": lambda: draw.choice(["string", "integer", "array", "object", "number", ["null", "string"], "nonsense"]),
        "pattern": lambda: draw.choice(["^a", "(a+)+$", "(?=a)", "[", "a{1000}{1000}", r"\d"]),
        "enum": lambda: [1, "a", None, [1], {"a": 1}],
        "properties": lambda: {name: inner() for name in draw.sample(["a", "b", "$ref"], draw.randrange(4))},
        "items": inner,
        "additionalProperties": inner,
        "patternProperties": lambda: {draw.choice(["^a", "(", "b$"]): inner()},
        "anyOf": lambda: [inner(), inner()],
        "oneOf": lambda: [inner(), inner()],
        "allOf": lambda: [inner()],
        "not": inner,
        "if": inner,
        "then": inner,
        "$ref": lambda: draw.choice(
            ["#", "#/properties/a", "#/$defs/x", "http://127.0.0.1:9/", "file:///etc/passwd", "#a"]
        ),
        "$defs": lambda: {"x": inner()},
        "multipleOf": lambda: draw.choice([2, 0.1, 1e-300, 0, -1]),
        "minimum": lambda: draw.choice([1, -1e308, 10**400, "1"]),
        "uniqueItems": lambda: True,
        "required": lambda: draw.choice([["a"], "a", [1]]),
        "minLength": lambda: draw.choice([0, 1, -1, 10**30]),
        "contains": inner,
        "unevaluatedProperties": inner,
        "dependentSchemas": lambda: {"a": inner()},
        "propertyNames": inner,
        "$schema": lambda: draw.choice(["http://json-schema.org/draft-07/schema#", "http://127.0.0.1:9/"]),
        "$id": lambda: draw.choice(["http://127.0.0.1:9/", "#a", 1]),
    }
    rare = draw.random() < 0.9
    names = [name for name in parts if not (rare and name.startswith("$"))]
    return {name: parts[name]() for name in draw.sample(names, draw.randint(1, 4))}


JSON_VALUES: list[Any] = [
    *(None, True, 0, 1, 2.0, -1.5, 1e308, 10**400, "", "a", "ab" * 50, [], [1, 1.0], ["a", {}], {}, {"a": 1}),
    *({"a": "x", "b": []}, {"a": {"a": {"a": 1}}}, [[1], [1]]),
]


def test_random_schemas_are_refused_or_judge_as_the_library_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    draw, ends = random.Random(4), Counter[str]()
    for number in range(cases(250)):
        schema = _schema(draw)

        def case(schema: Any = schema) -> str:
            if find_schema_flaw(schema) is not None:
                return "refused"
            for value in draw.sample(JSON_VALUES, 4):
                ours = find_mismatch(schema, value)
                if "multipleOf" not in json.dumps(schema):  # which is exact here
                    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
                    assert (ours is None) == kind(schema).is_valid(value), (schema, value)
            return "taken"

        _end(f"schema {number}", case, ends)
    report("schemas", ends)
    assert min(ends["taken"], ends["refused"]) > 20


WORDS = [
    *(
        "messages",
        "x",
        "loop",
        "range(3)",
        "range(99999)",
        "namespace()",
        "'a'",
        "'%999999999d'",
        "1",
        "2.5",
        "none",
        "true",
    ),
    *("['a', 'b']", "{'a': 1}", "(1, 2)", "messages[0]", "x.content", "x['role']", "loop.index", "loop.last", "''"),
    *(
        "'a'.upper()",
        "x.items()",
        "'a b'.split()",
        "x.__class__",
        "messages[::-1]",
        "missing",
        "missing.x",
        "'x' * 99999",
    ),
]
PIPES = [
    *(
        "upper",
        "tojson",
        "length",
        "join",
        "sort",
        "first",
        "last",
        "list",
        "default('d')",
        "replace('a', 'bb')",
        "trim",
    ),
    *("map(attribute='role')", "selectattr('role')", "unique", "int", "string", "reverse", "batch(2)", "indent(99999)"),
    *(
        "center(9999999)",
        "format(1)",
        "attr('__class__')",
        "sum",
        "round(9)",
        "safe",
        "e",
        "dictsort",
        "tojson(indent=2)",
    ),
]
PLAIN = ["x.role", "x['content']", "'a'", "1", "2.5", "true", "range(3)", "messages", "messages[0]", "'a b'"]
TESTS = ["defined", "string", "even", "odd", "none", "mapping", "iterable", "divisibleby 2", "in ['a']", "sameas none"]


def _expression(draw: random.Random, depth: int = 0, words: list[str] = WORDS) -> str:
    if depth > 2 or draw.random() < 0.3:
        return draw.choice(words)
    left, right = _expression(draw, depth + 1, words), _expression(draw, depth + 1, words)
    shape = draw.randrange(7)
    return (
        f"{left}|{draw.choice(PIPES)}",
        f"({left} {draw.choice(['+', '-', '*', '/', '//', '%', '**', '~'])} {right})",
        f"({left} {draw.choice(['==', '<', '>=', 'in', 'not in', 'and', 'or'])} {right})",
        f"({left} is {draw.choice(TESTS)})",
        f"({left} if {right} else 1)",
        f"[{left}, {right}]",
        f"({left})[{draw.choice(['0', '-1', '1:', 'x'])}]",
    )[shape]


def _chat_blocks(inner: str, value: str) -> list[str]:
    return [
        "{% set x %}" + inner + "{% endset %}",
        "{% macro f(x) %}" + inner + "{% endmacro %}{{ f(" + value + ") }}",
        "{% generation %}" + inner + "{% endgeneration %}",
    ]


def _template(draw: random.Random, depth: int = 0, words: list[str] = WORDS) -> str:
    parts = []
    for _ in range(draw.randint(1, 3)):
        value = _expression(draw, 1, words)
        inner = _template(draw, depth + 1, words) if depth < 3 else "t"
        parts.append(
            draw.choice(
                [
                    "{{ " + value + " }}",
                    "{% for x in " + value + " %}" + inner + "{% endfor %}",
                    "{% if " + value + " %}" + inner + "{% else %}e{% endif %}",
                    "{% set x = " + value + " %}",
                    *(["text\n"] if words is PLAIN else []),
                    *([] if words is PLAIN else _chat_blocks(inner, value)),
                ]
            )
        )
    return "".join(parts)


def test_random_prompts_and_conditions_end_in_text_or_a_problem() -> None:
    draw, ends = random.Random(5), Counter[str]()
    values = {"x": {"role": "user", "content": "a"}, "messages": ["a", "b"]}
    for number in range(cases(500)):
        words = draw.choice([WORDS, PLAIN, PLAIN])
        source, condition = _template(draw, 2, words), _expression(draw, 1, words)

        def case(source: str = source, condition: str = condition) -> str:
            try:
                compile_template(source, None).render(values)
                compile_expression(condition, None).evaluate(values)
            except TemplateProblem:
                return "refused"
            return "rendered"

        _end(f"prompt {number}", case, ends)
    report("prompts and conditions", ends)
    assert ends["rendered"] > 20


MESSAGES = [{"role": "user", "content": "a <b>"}, {"role": "assistant", "content": "😀"}]


def test_random_chat_templates_end_and_render_as_in_transformers() -> None:
    draw, ends = random.Random(6), Counter[str]()
    for number in range(cases(500)):
        source = _template(draw)

        def case(source: str = source) -> str:
            try:
                ours = render_chat_template(source, MESSAGES)
            except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError):
                return "refused"
            theirs = render_jinja_template([MESSAGES], chat_template=source)[0][0]
            assert ours == theirs or "<generator" in theirs, source
            return "rendered alike"

        _end(f"chat template {number}", case, ends)
    report("chat templates", ends)
    assert ends["rendered alike"] > 20


def test_all_fuzzers_are_listed_on_the_security_page() -> None:
    page = (ROOT / "docs" / "reference" / "security.md").read_text()
    kinds: Iterable[str] = ("recipes", "inputs", "data files", "schemas", "prompts and conditions", "chat templates")
    for kind in kinds:
        assert f"| {kind} |" in page, kind
