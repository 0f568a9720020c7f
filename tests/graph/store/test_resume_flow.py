"""Going on in the middle of a loop, of a list, and of a graph within the graph."""

from pathlib import Path
from typing import Any

import pytest

from cachegraph import Graph, RunError
from cachegraph.agents.base import Reply, Turn
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.store import Store


class FailsOnce(ScriptedAgent):
    """Fails in the one turn of this id, and notes the ids of all turns that it took."""

    def __init__(self, name: str, bad: str | None = None):
        super().__init__(name, lambda turn: f"{turn.id}<{turn.inputs.get('item', '')}>")
        self.bad = bad
        self.took: list[str] = []

    async def turn(self, turn: Turn) -> Reply:
        self.took.append(turn.id)
        if turn.id == self.bad:
            raise ValueError("no")
        return await super().turn(turn)


LOOP: dict[str, Any] = {
    "agents": {name: {"model": "m", "prompt": "p"} for name in ("writer", "critic")},
    "edges": [{"from": "writer", "to": "critic"}, {"from": "critic", "to": "writer", "max_rounds": 3}],
    "output": "writer",
}
LIST: dict[str, Any] = {
    "inputs": {"words": {}},
    "agents": {
        "reader": {"model": "m", "prompt": "p", "for_each": "words.split()"},
        "out": {"model": "m", "prompt": "p"},
    },
    "edges": [{"from": "reader", "to": "out"}],
    "output": "out",
}


def resumed(
    store: Store, parts: dict[str, Any], name: str, bad: str, **inputs: str
) -> tuple[list[str], list[str], Any]:
    """What the agent took before it failed and after, and the result; the same as an undisturbed run's."""
    broken, mended, whole = FailsOnce(name, bad), FailsOnce(name), FailsOnce(name)
    with pytest.raises(RunError) as caught:
        Graph(name="flow", create=scripted(broken), **parts).run(inputs, store=store)
    result = Graph(name="flow", create=scripted(mended), **parts).resume(caught.value.result.run_id, store=store)
    undisturbed = Graph(name="flow", create=scripted(whole), **parts).run(inputs)
    assert (result.status, result.text) == ("finished", undisturbed.text)
    return broken.took, mended.took, result


def test_a_loop_goes_on_in_the_round_where_it_stood(store: Store) -> None:
    before, after, result = resumed(store, LOOP, "writer", "writer#3")
    assert (before, after) == (["writer", "writer#2", "writer#3"], ["writer#3"])
    turns = [turn.turn for turn in store.get(result.run_id).turns]
    assert turns == ["writer", "critic", "writer#2", "critic#2", "writer#3", "critic#3"]


def test_of_a_list_only_the_items_that_had_not_finished_are_done(store: Store) -> None:
    parts = {**LIST, "agents": {**LIST["agents"]}}
    parts["agents"]["reader"] = {**parts["agents"]["reader"], "max_concurrent": 1}
    before, after, _ = resumed(store, parts, "reader", "reader[2]", words="a b c d")
    assert before == ["reader[0]", "reader[1]", "reader[2]"]
    assert after == ["reader[2]", "reader[3]"]


def test_a_graph_within_the_graph_goes_on_where_it_stood(store: Store, tmp_path: Path) -> None:
    agents = (
        "agents: {one: {model: m, prompt: p}, two: {model: m, prompt: p}}\nedges: [{from: one, to: two}]\noutput: two\n"
    )
    (tmp_path / "inner.yaml").write_text(f"version: 1\nname: inner\n{agents}")
    outer = "version: 1\nname: outer\nagents: {deep: {graph: inner.yaml}}\noutput: deep\n"
    (tmp_path / "outer.yaml").write_text(outer)
    one, two, again = FailsOnce("one"), FailsOnce("two", "deep/two"), FailsOnce("one")
    with pytest.raises(RunError) as caught:
        Graph.from_yaml(tmp_path / "outer.yaml", create=scripted(one, two)).run(store=store)
    run = caught.value.result.run_id
    assert [turn.turn for turn in store.get(run).turns] == ["deep/one"]
    assert list(store.get(run).setting.included) == [str((tmp_path / "inner.yaml").resolve())]
    result = Graph.from_run(run, store, create=scripted(again, FailsOnce("two"))).resume(run, store=store)
    assert (result.text, again.took) == ("deep/two<>", [])
