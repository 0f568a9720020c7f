"""Typed inputs: what fits, what is refused with which words, and what a command line gives."""

from typing import Any

import pytest

from cachegraph import Graph, InputError, RecipeError
from cachegraph.agents.prompt.template import compile_template
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.recipe.inputs import check_inputs, parse_inputs
from cachegraph.graph.recipe.load import parse_recipe
from cachegraph.graph.recipe.spec import InputSpec

AGES = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def spec(**parts: Any) -> dict[str, InputSpec]:
    return {"x": InputSpec.model_validate(parts)}


@pytest.mark.parametrize(
    ("parts", "value", "got"),
    [
        ({}, 3, "3"),
        ({"type": "number"}, 3.5, 3.5),
        ({"type": "boolean"}, False, False),
        ({"type": "list"}, [1, "a"], [1, "a"]),
        ({"type": "object"}, {"a": [None]}, {"a": [None]}),
        ({"schema": AGES}, {"age": 7}, {"age": 7}),
        ({"schema": {"enum": ["a", 1]}}, 1, 1),
    ],
)
def test_a_value_of_the_right_type_is_taken(parts: dict[str, Any], value: object, got: object) -> None:
    assert check_inputs(spec(**parts), {"x": value}) == {"x": got}


@pytest.mark.parametrize(
    ("parts", "value", "said"),
    [
        ({}, ["a"], "input 'x' must be text or a number, not list"),
        ({"type": "number"}, True, "must be a number, not bool"),
        ({"type": "number"}, "3", "must be a number, not str"),
        ({"type": "list"}, "a b", "must be a list, not str"),
        ({"type": "list"}, [object()], "must be a JSON value"),
        ({"type": "object"}, [], "must be an object, not list"),
        ({"schema": AGES}, {"age": "old"}, r"doesn't satisfy its schema at \$.age: 'old' is not of type 'integer'"),
        ({"schema": AGES}, {}, "'age' is a required property"),
    ],
)
def test_a_value_of_another_type_is_refused(parts: dict[str, Any], value: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_inputs(spec(**parts), {"x": value})


def test_a_command_line_gives_json_where_no_text_is_wanted() -> None:
    assert parse_inputs(spec(type="list"), {"x": "[1, 2]"}) == {"x": [1, 2]}
    assert parse_inputs(spec(), {"x": "[1, 2]"}) == {"x": "[1, 2]"}
    with pytest.raises(InputError, match="input 'x' is of type 'list', and what is given is not JSON"):
        parse_inputs(spec(type="list"), {"x": "a"})


def test_lists_and_objects_are_read_in_prompts_and_lists() -> None:
    seen: list[Any] = []
    reader = ScriptedAgent("r", lambda turn: seen.append(turn.inputs["doc"]) or "x")  # type: ignore[func-returns-value]
    graph = Graph(
        inputs={"docs": {"type": "list"}},
        agents={"r": {"model": "m", "prompt": "{{ doc.title }}", "for_each": "{{ docs }}", "as": "doc"}},
        output="r",
        create=scripted(reader),
    )
    graph.run(docs=[{"title": "a"}, "b"])
    assert seen == [{"title": "a"}, "b"]


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("{default: 3}", "<recipe>:3:23: 'default' must be text, got 3; write it in quotes"),
        ("{type: list, default: a}", "<recipe>:3:35: the default of input 'x' must be a list, not str"),
        ("{type: array}", "'type' must be"),
    ],
)
def test_a_default_is_checked_with_its_place(declared: str, said: str) -> None:
    text = f"version: 1\nname: x\ninputs: {{x: {declared}}}\nagents: {{a: {{model: m, prompt: ''}}}}\noutput: a\n"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    assert said in str(caught.value)


def _nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("inputs", "given", "words"),
    [
        ({"type": "list"}, _nested(5000), "nested too deeply"),
        ({"type": "list"}, _nested(300), "nested too deeply"),
        ({"type": "object"}, {"a": _nested(900)}, "nested too deeply"),
        ({}, 10**5000, "too many digits"),
        ({"type": "number"}, 10**5000, "must be a JSON value"),
        ({"type": "list"}, [10**5000], "must be a JSON value"),
        ({"type": "number"}, float("nan"), "must be a JSON value"),
        ({"type": "list"}, [{1, 2}], "must be a JSON value"),
    ],
    ids=range(8),
)
def test_what_python_gives_that_is_no_plain_json_is_an_input_error(
    inputs: dict[str, Any], given: Any, words: str
) -> None:
    declared = {"x": InputSpec.model_validate(inputs)}
    with pytest.raises(InputError, match=words):
        check_inputs(declared, {"x": given})


@pytest.mark.parametrize("text", ["[" * 20_000 + "]" * 20_000, "[" * 300 + "]" * 300, "9" * 9000, "[", "", "\x00"])
def test_what_a_command_line_gives_that_is_no_json_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="not JSON"):
        parse_inputs({"x": InputSpec(type="list")}, {"x": text})


def test_half_surrogates_in_inputs_are_mended_wherever_they_stand() -> None:
    declared = {"q": InputSpec(), "o": InputSpec(type="object")}
    values = check_inputs(declared, {"q": "a\ud83d\ude00\udce9", "o": {"k\ud83d": ["\ude00"]}})
    prompt = compile_template("{{ q }} {{ o|tojson }}", None).render(values).text
    assert prompt == 'a😀\ufffd {"k\ufffd": ["\ufffd"]}'
    assert parse_inputs(declared, {"o": '\ufeff{"a": "\\ud83d\\ude00"}'}) == {"o": {"a": "😀"}}
