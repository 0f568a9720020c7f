"""Why each reply ended, wherever a result is told: in results, events, JSON, the store and sub-graphs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cachegraph import Graph, Result, RunError
from cachegraph.agents.base import Reply, Turn
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.draw.run_view import from_store
from cachegraph.graph.run.events import AgentFinished
from cachegraph.graph.store import Store

from .flow import Edges, build, says

pytestmark = pytest.mark.anyio


class Cuts(ScriptedAgent):
    """Is cut short wherever its input has this word."""

    async def turn(self, turn: Turn) -> Reply:
        reply = await super().turn(turn)
        reply.finish_reason = "length" if "long" in turn.inputs.values() else "eos"
        return reply


async def test_results_events_and_json_tell_why_a_reply_ended() -> None:
    graph = build(["a>b"], ScriptedAgent("a", "x", finish_reason="length"), says("b", "y"), output="b")
    async with graph.stream() as run:
        told = {event.agent: event.to_dict()["result"] async for event in run if isinstance(event, AgentFinished)}
    assert {name: result["finish_reason"] for name, result in told.items()} == {"a": "length", "b": "stop"}
    plain = run.result.to_json()
    assert json.loads(plain)["agents"]["a"]["finish_reason"] == "length"
    again = Result.from_json(plain)
    assert (again.agents["a"].finish_reason, again.agents["a"].is_cut, again.agents["b"].is_cut) == (
        "length",
        True,
        False,
    )


def test_a_result_from_before_the_field_still_loads() -> None:
    plain = json.loads(build([], says("a", "x"), output="a").run().to_json())
    del plain["agents"]["a"]["finish_reason"]
    assert Result.from_json(json.dumps(plain)).agents["a"].finish_reason is None


def test_the_store_keeps_it_and_a_resumed_run_tells_it_again(tmp_path: Path) -> None:
    with Store(tmp_path / "runs.db") as store:
        first, broken = ScriptedAgent("a", "x", finish_reason="length"), ScriptedAgent("b", fail=ValueError("no"))
        with pytest.raises(RunError) as caught:
            build(["a>b"], first, broken, output="b").run(store=store)
        run = caught.value.result.run_id
        assert from_store(store.get(run)).turns["a"][0].finish_reason == "length"
        result = build(["a>b"], says("a", "never asked"), says("b", "y"), output="b").resume(run, store=store)
        assert result.agents["a"].finish_reason == "length"


def test_one_item_that_is_cut_leaves_the_joined_reply_cut() -> None:
    graph = build([], Cuts("reader"), output="reader", inputs=["w"], reader={"for_each": "w.split()", "as": "word"})
    result = graph.run(w="short long short")
    assert [item.finish_reason for item in result.agents["reader"].items] == ["eos", "length", "eos"]
    assert result.agents["reader"].finish_reason == "length"
    assert graph.run(w="short").agents["reader"].finish_reason == "eos"
    assert graph.run(w="").agents["reader"].finish_reason is None


def test_a_recipe_in_an_agents_place_ends_as_its_output_does(tmp_path: Path) -> None:
    inner = 'version: 1\nname: i\nagents:\n  a: {model: m, prompt: x}\n  b: {model: m, prompt: "{{ a }}"}\n'
    (tmp_path / "inner.yaml").write_text(inner + "edges: [{from: a, to: b}]\noutput: b\n")
    (tmp_path / "outer.yaml").write_text("version: 1\nname: o\nagents: {team: {graph: inner.yaml}}\noutput: team\n")
    agents = scripted(ScriptedAgent("a", finish_reason="refusal"), ScriptedAgent("b", finish_reason="length"))
    result = Graph.from_yaml(tmp_path / "outer.yaml", create=agents).run()
    assert result.agents["team"].finish_reason == "length"
    assert result.agents["team"].inside["a"].finish_reason == "refusal"


@pytest.mark.parametrize(("reason", "said"), [("content_filter", "endpoint's filter"), ("refusal", "model's refusal")])
async def test_a_reply_that_was_withheld_in_part_is_kept_and_warned_of(reason: Any, said: str) -> None:
    result = await build(["a>b"], ScriptedAgent("a", "Half a", finish_reason=reason), says("b", "y"), output="b").arun()
    assert result.agents["a"].text == "Half a"
    (warning,) = [each for each in result.warnings if each.kind == "withheld"]
    assert warning.names == ("a",)
    assert f"'a' was broken off by the {said}" in warning.message
    assert "withheld" in result.to_json()


@pytest.mark.parametrize("data", [math.inf, [1, {"a": -math.inf}], {"a": (math.nan,)}])
async def test_data_that_json_does_not_know_fails_its_agent(data: Any) -> None:
    graph = build(["a>b"], ScriptedAgent("a", "x", data=data), says("b", "y"), output="b")
    with pytest.raises(RunError, match="'a' replied with data that holds NaN or Infinity"):
        await graph.arun()


def test_a_result_warns_of_replies_that_a_limit_has_cut() -> None:
    edges: Edges = ["a>b", {"edge": "b>a", "max_rounds": 2, "until": "false"}]
    result = build(edges, ScriptedAgent("a", "x", finish_reason="length"), says("b", "y"), output="b").run()
    (warning,) = result.warnings
    assert (warning.kind, warning.names) == ("cut", ("a",))
    assert str(warning).startswith("2 of 2 replies of 'a' were cut at the token limit")
    (one,) = build([], ScriptedAgent("a", "x", finish_reason="length"), output="a").run().warnings
    assert str(one).startswith("the reply of 'a' was cut at the token limit")
