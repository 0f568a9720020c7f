"""Expressions: values out of the sandbox, structured data, and what is refused with its place."""

from typing import Any

import pytest

from cachegraph.agents.prompt.expression import compile_expression
from cachegraph.agents.prompt.filters import Value
from cachegraph.agents.prompt.template import TemplateProblem, compile_template

TRIAGE = Value("It is a bug.", "triage", {"kind": "bug", "tags": ["ui", "urgent"], "score": 0.5})


def evaluate(source: str, **values: Any) -> Any:
    return compile_expression(source).evaluate({"triage": TRIAGE, **values})


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("triage.data.kind == 'bug'", True),
        ("'bug' in triage and triage.data.score > 0.4", True),
        ("{{ triage.data.tags }}", ["ui", "urgent"]),
        ("triage.data.tags[1]", "urgent"),
        ("triage.data['kind']|upper", "BUG"),
        ("triage.data.gone|default('none')", "none"),
        ("triage.data.tags|length", 2),
        ("triage|length", 12),
        ("triage.data|tojson", '{"kind": "bug", "tags": ["ui", "urgent"], "score": 0.5}'),
        ("\n{{ 'yes' if not triage.startswith('x') else 'no' }}\n", "yes"),
    ],
)
def test_an_expression_has_the_value_that_jinja_gives_it(source: str, value: object) -> None:
    assert evaluate(source) == value


@pytest.mark.parametrize(
    ("source", "place", "says"),
    [
        ("triage.uper()", (1, 8), "unknown attribute 'uper'"),
        ("{{ triage.uper() }}", (1, 11), "unknown attribute 'uper'"),
        ("triage ==", (1, 9), "end of the expression"),
        ("{{ 1 }} or {{ 2 }}", (1, 1), "one value"),
        ("", (1, 1), "expected an expression"),
        ("triage|tojsn", (1, 8), "unknown filter 'tojsn'"),
    ],
)
def test_what_is_no_expression_is_refused_with_its_place(source: str, place: tuple[int, int], says: str) -> None:
    with pytest.raises(TemplateProblem) as caught:
        compile_expression(source)
    assert says in caught.value.message
    assert (caught.value.line, caught.value.column) == place


@pytest.mark.parametrize(
    "source",
    [
        "triage.data.items()",
        "triage.data.__class__",
        "triage.data['__class__']",
        "triage.data.tags.append(1)",
        "nobody",
    ],
)
def test_data_has_fields_and_no_methods(source: str) -> None:
    with pytest.raises(TemplateProblem):
        evaluate(source)


def test_data_must_be_json() -> None:
    with pytest.raises(TemplateProblem, match="JSON values, and object is not one"):
        compile_expression("x.data").evaluate({"x": Value("", "x", object())})


def test_an_expression_names_what_it_needs() -> None:
    expression = compile_expression("a.data.x > 1 and b")
    assert (expression.names, expression.fields) == (frozenset({"a", "b"}), frozenset({"a"}))
    assert compile_expression("a and\n  b").place("b") == (2, 3)


def test_a_template_writes_a_field_of_a_reply_and_its_text() -> None:
    template = compile_template(
        "{{ triage.data.kind }}: {{ triage }}{% for t in triage.data.tags %} #{{ t }}{% endfor %}"
    )
    rendered = template.render({"triage": TRIAGE})
    assert rendered.text == "bug: It is a bug. #ui #urgent"
    assert [span.origin for span in rendered.spans if span.kind == "value"] == ["triage"]
    assert template.fields == {"triage"}


def test_a_field_of_a_slot_stays_readable() -> None:
    rendered = compile_template("{{ triage.data.kind }}{{ triage }}").render({"triage": TRIAGE}, {"triage"})
    assert (rendered.text, rendered.spans[-1].kind) == ("bug", "slot")


def test_a_slot_can_not_be_forged_by_data() -> None:
    forged = Value("", "x", {"text": "\ufdd0\U000f0000"})
    rendered = compile_template("{{ x.data.text }}").render({"x": forged}, {"y"})
    assert all(span.kind != "slot" for span in rendered.spans)


def test_an_object_is_no_text() -> None:
    with pytest.raises(TemplateProblem, match="not an object; name a field of it"):
        compile_template("{{ triage.data }}").render({"triage": TRIAGE})
