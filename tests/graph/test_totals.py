"""Totals count every turn of a loop, every item and every sub-graph; a run tells what its models took to load."""

import json
from pathlib import Path

import pytest

from cachegraph import Graph, Result
from cachegraph.agents.base import Reply, Timing, Tokens, Turn
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.channels.payload import EdgeReport

from .flow import Edges, build

pytestmark = pytest.mark.anyio


class Worker(ScriptedAgent):
    """Each turn reads ten tokens and three bytes an edge, writes two words, and takes a second to decode."""

    async def turn(self, turn: Turn) -> Reply:
        reply = await super().turn(turn)
        reply.tokens = Tokens(prefilled=10, generated=2, reused=1, kv_bytes=100)
        reply.timing = Timing(decode=1.0, total=1.5)
        reply.edges = {each.payload.sender: EdgeReport("text", "text", bytes=3) for each in turn.deliveries}
        return reply


class Heavy(Worker):
    """Loads a model."""

    loading = {"small": {"read": 0.5, "check": 0.25, "prepare": 0.125}}  # noqa: RUF012


def test_every_round_of_a_loop_counts_also_those_that_are_no_longer_kept() -> None:
    edges: Edges = ["a>b", {"edge": "b>a", "max_rounds": 13, "until": "false"}, "b>c"]
    result = build(edges, Worker("a", "x y"), Worker("b", "z w"), Worker("c", "u v"), output="c").run()
    a = result.agents["a"]
    assert (a.turns, len(a.earlier), a.tokens.generated) == (13, 8, 2)
    assert (a.total_tokens.generated, a.total_tokens.prefilled, a.total_tokens.kv_bytes) == (26, 130, 100)
    assert a.total_timing.decode == 13.0
    assert (result.totals.turns, result.totals.tokens.generated, result.totals.timing.decode) == (27, 54, 27.0)
    assert result.traffic["a", "b"].messages == 13
    assert result.totals.bytes == (13 + 12 + 1) * 3
    again = Result.from_json(result.to_json())
    assert (again.totals, again.traffic) == (result.totals, result.traffic)


def test_every_item_counts() -> None:
    options = {"for_each": "words.split()", "as": "word"}
    result = build(["r>out"], Worker("r"), Worker("out"), output="out", inputs=["words"], r=options).run(
        words="a b c d"
    )
    assert result.agents["r"].total_tokens.generated == 8
    assert (result.totals.turns, result.totals.tokens.prefilled) == (5, 50)


def test_a_loop_within_a_recipe_within_a_list_counts_too(tmp_path: Path) -> None:
    inner = """\
version: 1
name: inner
inputs: {word: {}}
agents:
  a: {model: m, prompt: "{{ word }}"}
  b: {model: m, prompt: "{{ a }}"}
edges: [{from: a, to: b}, {from: b, to: a, max_rounds: 3, until: "false"}]
output: b
"""
    outer = """\
version: 1
name: outer
inputs: {words: {}}
agents:
  team: {graph: inner.yaml, inputs: {word: "{{ word }}"}, for_each: words.split(), as: word}
  out: {model: m, prompt: "{{ team }}"}
edges: [{from: team, to: out}]
output: out
"""
    (tmp_path / "inner.yaml").write_text(inner)
    (tmp_path / "outer.yaml").write_text(outer)
    agents = scripted(Worker("a", "x y"), Worker("b", "z w"), Worker("out", "u v"))
    result = Graph.from_yaml(tmp_path / "outer.yaml", create=agents).run(words="p q")
    assert result.totals.turns == 2 * 6 + 1  # two items, three rounds of two agents, and the last one
    assert result.totals.tokens.generated == 26
    assert result.agents["team"].total_tokens.generated == 24
    assert result.traffic["team/a", "team/b"].messages == 6
    assert result.totals.bytes == sum(part.bytes for part in result.traffic.values()) == (2 * (3 + 2) + 1) * 3


def test_the_first_run_tells_what_its_models_took_to_load_and_later_ones_do_not() -> None:
    graph = build(["a>b"], Heavy("a"), Worker("b"), output="b")
    first, second = graph.run(), graph.run()
    assert first.loading.models == {"small": {"read": 0.5, "check": 0.25, "prepare": 0.125}}
    assert first.loading.seconds > 0
    assert (second.loading.models, second.loading.seconds) == ({}, 0.0)
    graph.close()
    with graph:  # which loads them before the run begins
        assert graph.run().loading.models == first.loading.models


async def test_an_early_look_is_not_changed_by_what_follows() -> None:
    async with build(["a>b"], Worker("a", "x"), Worker("b", "y"), output="b").stream() as run:
        looks = [run.result async for event in run if event.type == "agent_finished"]
    assert [each.totals.turns for each in looks] == sorted(each.totals.turns for each in looks)
    assert run.result.totals.turns == 2
    assert run.result.totals is not looks[0].totals


def test_results_from_before_have_no_totals() -> None:
    plain = json.loads(build([], Worker("a"), output="a").run().to_json())
    for name in ("totals", "traffic", "loading"):
        del plain[name]
    assert Result.from_json(json.dumps(plain)).totals.turns == 0
