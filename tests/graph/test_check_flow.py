"""What is wrong with a recipe's control flow is said with its place and a remedy."""

import pytest

from cachegraph import RecipeError
from cachegraph.graph.recipe.load import parse_recipe
from cachegraph.graph.topology.reachability import PossibleEdge, surely_run

GOOD = """\
version: 1
name: x
inputs: {topic: {}}
agents:
  a: {model: m, prompt: "{{ topic }}"}
  b: {model: m, prompt: "{{ a }}"}
  c: {model: m, prompt: "{{ b }}{{ a }}"}
edges:
  - {from: a, to: b}
  - {from: a, to: c}
  - {from: b, to: c}
output: c
"""


def problems(*changes: tuple[str, str]) -> list[str]:
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    return [f"{each.line}:{each.column} {each.message}; {each.hint}" for each in caught.value.problems]


AB, BC, AC = "from: a, to: b", "from: b, to: c", "from: a, to: c"
A = 'a: {model: m, prompt: "{{ topic }}"'


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            [(AB, AB + ", when: topci")],
            "9:28 'when' of edge 'a' -> 'b' names 'topci', which is neither an input nor an",
        ),
        ([(AB, AB + ", when: topci")], "did you mean 'topic'?"),
        ([(AB, AB + ", when: c")], "9:28 'when' of edge 'a' -> 'b' names agent 'c', which may not have run by then"),
        ([(AB, AB + ", when: topic"), (BC, BC + ", when: 'a and d'")], "'d', which is neither"),
        ([(AB, AB + ', when: "a =="')], "9:32 'when' of edge 'a' -> 'b': template: unexpected 'end of the expression'"),
        ([(AB, AB + ', when: "a.uper()"')], "9:31 'when' of edge 'a' -> 'b': unknown attribute 'uper'"),
        ([(AB, AB + ", until: topic")], "9:29 'until' of edge 'a' -> 'b' has no 'max_rounds' beside it"),
        ([(AB, AB + ", max_rounds: 2")], "9:34 edge 'a' -> 'b' has 'max_rounds' and closes no cycle"),
        ([(AB, AB + ", rounds: all")], "9:30 agent 'a' is in no loop"),
        ([(A, A + ", join: 2")], "5:46 agent 'a' wants to join 2 messages, and 0 edges lead to it; leave it out"),
        ([(A, A + ", route: [{to: d}]")], "5:53 agent 'a' routes to 'd', but no edge leads there"),
        ([(A, A + ", route: [{when: topic, to: b}]")], "5:48 the route of agent 'a' has no default"),
        (
            [(A, A + ", route: [{to: b}, {to: c}]")],
            "5:48 a case of the route of agent 'a' without 'when' is its default",
        ),
        ([(A, A + ", route: [{when: b, to: b}, {to: c}]")], "the route of agent 'a' names agent 'b', which may not"),
        ([(A, A + ", route: [{to: b}]"), (AB, AB + ", when: a")], "agent 'a' also routes to 'b'"),
        ([(A, A + ", for_each: topic")], "5:50 for_each of agent 'a' goes over 'topic', which is not a list"),
        ([(A, A + ', for_each: "{{ topic }}"')], "5:54 for_each of agent 'a' goes over 'topic', which is not a list"),
        ([(A, A + ", for_each: b.data")], "5:50 for_each of agent 'a' names agent 'b', which may not have run"),
        ([(A, A + ", as: x")], "5:40 'as' of agent 'a' means nothing without 'for_each'"),
        ([(A, A + ", for_each: topic.split(), as: b")], "the items of agent 'a' are called 'b', as is an agent"),
        ([(AC, AC + "}\n  - {from: c, to: b")], "give the one that leads back 'max_rounds'"),
        ([(AC, AC + ", when: topic"), (BC, BC + ", when: topic")], "12:9 the output 'c' may be skipped"),
        ([("output: c", "output: [c, d]")], "12:13 output 'd' is not an agent of this recipe"),
        ([(AB, "from: a, to: a")], "leads back to where it starts; remove it, or give it 'max_rounds'"),
    ],
)
def test_a_problem_of_control_flow_has_its_place(changes: list[tuple[str, str]], said: str) -> None:
    found = problems(*changes)
    assert any(said in each for each in found), found


@pytest.mark.parametrize(
    "changes",
    [
        [(AB, AB + ", when: topic and a.data.x > 1")],
        [(AB, AB + ", when: topic"), (BC, BC + ", when: a")],  # c hears a for sure
        [(A, A + ', route: [{when: "a.data.kind == 1", to: b}, {to: c}]')],  # both ways lead to the output
        [("output: c", "output: {one: c, two: b}")],
        [(BC, BC + "}\n  - {from: c, to: b, max_rounds: 3, until: c and b and a")],
        [(A, A + ", for_each: topic.split(), as: x"), ("{{ topic }}", "{{ x.title }}")],
        [('prompt: "{{ b }}{{ a }}"', "prompt: x, join: any")],
    ],
)
def test_what_can_work_is_accepted(changes: list[tuple[str, str]]) -> None:
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    parse_recipe(text)


def test_who_has_surely_run_is_told_by_dominators_and_by_unconditional_ways() -> None:
    ways = [
        PossibleEdge("a", "b", True),
        PossibleEdge("a", "c", False),
        PossibleEdge("b", "d", False),
        PossibleEdge("c", "d", False),
    ]
    certain = surely_run("abcd", ways, early=())
    assert certain["d"] == {"a", "c", "d"}
    assert surely_run("abcd", ways, early="d")["d"] == {"a", "d"}
