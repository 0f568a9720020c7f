import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachegraph.errors import RecipeError
from cachegraph.graph.plan.plan import plan
from cachegraph.graph.recipe.spec import GraphSpec
from cachegraph.graph.topology.cycles import find_cycles, unread


def graph(agents: str, edges: list[str], output: str) -> GraphSpec:
    """A graph of one-letter agents; an edge is two letters."""
    data = {
        "version": 1,
        "name": "x",
        "agents": {name: {"model": "m", "prompt": ""} for name in agents},
        "edges": [{"from": edge[0], "to": edge[1]} for edge in edges],
        "output": output,
    }
    return GraphSpec.model_validate(data)


def test_agents_that_need_nothing_of_each_other_share_a_generation() -> None:
    order = plan(graph("abcd", ["ab", "ac", "bd", "cd"], "d"))
    assert order.generations == (("a",), ("b", "c"), ("d",))
    assert order.critical_path == 3
    assert [order.steps[name].depth for name in "abcd"] == [2, 1, 1, 0]
    assert order.ancestors("d") == {"a", "b", "c"}
    assert order.ancestors("a") == frozenset()


def test_edges_come_in_the_recipe_s_order() -> None:
    order = plan(graph("cbad", ["cd", "ad", "bd"], "d"))
    assert [edge.sender for edge in order.steps["d"].incoming] == ["c", "a", "b"]
    assert [edge.receiver for edge in order.steps["c"].outgoing] == ["d"]


def test_the_longest_way_counts() -> None:
    order = plan(graph("abcd", ["ab", "bc", "cd", "ad"], "d"))
    assert order.steps["a"].depth == 3


@given(st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)).filter(lambda pair: pair[0] < pair[1])))
def test_nobody_runs_before_those_it_waits_for(pairs: set[tuple[int, int]]) -> None:
    names = "abcdefghi"
    order = plan(graph(names[::-1], [names[left] + names[right] for left, right in sorted(pairs)], "i"))
    place = {name: number for number, name in enumerate(order.steps)}
    level = {name: number for number, names in enumerate(order.generations) for name in names}
    for left, right in pairs:
        assert place[names[left]] < place[names[right]]
        assert level[names[left]] < level[names[right]]
        assert names[left] in order.ancestors(names[right])
        assert order.steps[names[left]].depth > order.steps[names[right]].depth


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (graph("ab", ["ab", "ba"], "b"), "agents wait for each other in a cycle: a -> b -> a"),
        (graph("ab", ["ac"], "b"), "edge 'a' -> 'c' names an agent that the recipe doesn't have"),
        (graph("ab", ["ab"], "c"), "output 'c' names an agent that the recipe doesn't have"),
    ],
)
def test_what_can_t_be_ordered_is_refused(spec: GraphSpec, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        plan(spec)


def test_each_knot_is_named_by_one_cycle() -> None:
    pairs = [("a", "b"), ("b", "a"), ("b", "c"), ("c", "d"), ("d", "e"), ("e", "c")]
    assert find_cycles("abcde", pairs) == [["a", "b", "a"], ["c", "d", "e", "c"]]
    assert find_cycles("ab", [("a", "b")]) == []


def test_agents_that_lead_nowhere_are_unread() -> None:
    assert unread("abcd", [("a", "b"), ("a", "c")], "b") == ["c", "d"]


def test_a_chain_of_ten_thousand_is_planned() -> None:
    names = [f"a{number}" for number in range(10_000)]
    data = {
        "version": 1,
        "name": "x",
        "agents": {name: {"model": "m", "prompt": ""} for name in names},
        "edges": [{"from": left, "to": right} for left, right in zip(names, names[1:], strict=False)],
        "output": names[-1],
    }
    order = plan(GraphSpec.model_validate(data))
    assert order.steps["a0"].depth == 9_999
    assert len(order.ancestors("a9999")) == 9_999


def test_reading_and_planning_load_neither_torch_nor_at_first_networkx() -> None:
    code = (
        "import sys, cachegraph.graph.recipe.load, cachegraph.graph.plan.plan, cachegraph.graph.draw.render, "
        "cachegraph.graph.recipe.json_schema, cachegraph.agents.prompt.template, cachegraph.cli.recipes; "
        "print([name for name in ('torch', 'transformers', 'networkx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
