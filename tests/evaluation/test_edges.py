"""One edge at a time: which of a graph's edges are worth a cache."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cachegraph import Comparison, Graph, compare
from cachegraph.agents.base import Turn
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.errors import InputError
from cachegraph.evaluation.comparison import Difference, EdgeSummary, EdgeWorth, Estimate, MetricInfo, VariantRow
from cachegraph.evaluation.edges import capable_edges, edge_sentences, edge_worths
from cachegraph.evaluation.run_variants import Progress

from .conftest import Answerer, Reader, rows, story_graph

pytestmark = pytest.mark.usefixtures("caches_travel")
READS: dict[str, Any] = {"model": "small", "prompt": "{{ context }}", "generate": {"max_new_tokens": 0}}
GRAPH: dict[str, Any] = {
    "name": "two",
    "models": {"small": "m", "far": {"base_url": "http://localhost:1/v1", "model": "x"}},
    "inputs": {"context": {}, "question": {}},
    "agents": {
        "reader": READS,
        "gossip": READS,
        "oracle": {"model": "far", "prompt": "{{ question }}"},
        "answerer": {"model": "small", "prompt": "{{ reader }} {{ gossip }} {{ oracle }} {{ question }}"},
    },
    "edges": [{"from": each, "to": "answerer"} for each in ("reader", "gossip", "oracle")],
    "output": "answerer",
}


class Listener(Answerer):
    """Answers by the reader's story: by its cache always, by its words for every second story. Ignores the gossip."""

    async def _knows(self, turn: Turn) -> bool:
        delivery = next((each for each in turn.deliveries if each.payload.sender == "reader"), None)
        if delivery is None:
            return False
        story = turn.inputs["context"]
        if delivery.route.used == "text":
            return int(story.split()[1]) % 2 == 0
        other = turn.control.other if turn.control is not None else None
        heard = (
            delivery if other is None else next(each for each in other.deliveries if each.route.edge.sender == "reader")
        )
        return bool(str(heard.payload.cache) == story)


def two_edges(**parts: Any) -> Graph:
    agents = (Reader("reader"), Reader("gossip"), ScriptedAgent("oracle", "hm"), Listener("answerer"))
    return Graph(create=scripted(*agents), **{**GRAPH, **parts})


def test_each_edge_is_swapped_alone_and_judged_with_its_own_control() -> None:
    found = compare(two_edges(), rows(), variants=["text"], edges=True)
    assert [row.name for row in found.rows] == [
        "text", "cache",
        "cache:reader:answerer", "mismatched:reader:answerer",
        "cache:gossip:answerer", "mismatched:gossip:answerer",
    ]  # fmt: skip
    heard, ignored, far = found.edges
    assert (heard.worth, ignored.worth, far.worth) == ("better", "not used", "text only")
    assert heard.is_worth_it
    assert heard.why.startswith("cache:reader:answerer beats text by 50.0 points (")
    assert "and cache:reader:answerer beats mismatched:reader:answerer by 100.0 points (" in heard.why
    assert ignored.why.endswith("no communication shown on this edge (detectable with 40 examples: 28.9 points)")
    assert "speaks through an endpoint" in far.why
    row = found.row("cache:gossip:answerer")
    assert row is not None
    used = {edge.sender: edge.asked for edge in row.edges}
    assert used == {"reader": "text", "gossip": "cache", "oracle": "text"}
    assert row.description.endswith("only on the edge gossip → answerer, with text on all others")
    said = "\n".join(found.verdicts)
    assert "worth a cache, each edge alone: reader → answerer\nreader → answerer: cache:reader" in said
    assert Comparison.from_json(found.to_json()) == found


def test_an_edges_variant_is_compared_with_text_and_its_own_control_only() -> None:
    found = compare(two_edges(), rows(8), metrics=["contains"], edges=True)
    pairs = [(each.variant, each.baseline) for each in found.differences if each.variant.startswith("cache:reader")]
    assert pairs == [("cache:reader:answerer", "text"), ("cache:reader:answerer", "mismatched:reader:answerer")]


def test_the_time_of_what_is_left_is_forecast_from_the_first_examples_of_each_variant(tmp_path: Path) -> None:
    told: list[Progress] = []
    compare(two_edges(), rows(6), edges=True, out=tmp_path / "r.jsonl", on_progress=told.append, concurrency=2)
    first = [each.variant for each in told if each.seconds_left is None][:24]
    assert len(set(first)) == 8
    (forecast,) = [each for each in told if each.seconds_left is not None]
    assert (forecast.done, forecast.total) == (2 * 8, 6 * 8)
    assert forecast.seconds_left is not None
    assert 0 < forecast.seconds_left < 60
    again: list[Progress] = []
    compare(two_edges(), rows(6), edges=True, out=tmp_path / "r.jsonl", on_progress=again.append, concurrency=2)
    assert {each.made for each in again} == {0}  # all results are in the file


def test_the_only_edge_is_not_run_twice() -> None:
    found = compare(story_graph(), rows(8), edges=True)
    assert {row.name: row.same_as for row in found.rows if row.same_as} == {
        "cache:reader:answerer": "cache", "mismatched:reader:answerer": "mismatched",
    }  # fmt: skip
    assert len(found.records) == 4 * 8
    assert found.edges[0].worth in ("faster", "no gain")  # by their times, which nobody can tell


def test_one_edge_may_be_asked_for_by_name() -> None:
    found = compare(two_edges(), rows(8), variants=["text", "cache:reader:answerer", "zero:reader:answerer"])
    assert [row.why_not for row in found.rows] == [None, None, None]
    assert found.edges == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cache:readr:answerer", "the recipe has no edge 'readr:answerer'; did you mean 'reader:answerer'?"),
        ("cache:reader", "there is no variant 'cache:reader'"),
        ("text:reader:answerer", "there is no variant 'text:reader:answerer'"),
        ("mismatched:cash", "there is no variant 'mismatched:cash'"),
    ],
)
def test_an_edge_that_is_none_is_named(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        compare(two_edges(), rows(8), variants=["text", name])


def test_without_an_edge_that_can_carry_a_cache_there_is_nothing_to_swap() -> None:
    agents = {**GRAPH["agents"], "answerer": {**GRAPH["agents"]["answerer"], "model": "far"}}
    with pytest.raises(InputError, match="no edge of the recipe can carry a cache .*endpoint.*no edge to swap"):
        compare(two_edges(agents=agents), rows(8), metrics=["contains"], edges=True)


def test_edges_of_included_recipes_are_swapped_alone_too(tmp_path: Path) -> None:
    inner = {"version": 1, **GRAPH, "agents": {**GRAPH["agents"], "oracle": READS}, "models": {"small": "m"}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(inner))
    given = {"context": "{{ context }}", "question": "{{ question }}"}
    outer = {
        "version": 1,
        "name": "outer",
        "inputs": {"context": {}, "question": {}},
        "agents": {"team": {"graph": "two.yaml", "inputs": given}},
        "output": "team",
    }
    (tmp_path / "outer.yaml").write_text(yaml.safe_dump(outer))
    agents = (Reader("reader"), Reader("gossip"), Reader("oracle"), Listener("answerer"))
    graph = Graph.from_yaml(tmp_path / "outer.yaml", create=scripted(*agents))
    assert capable_edges(graph)[0] == [(f"team/{name}", "team/answerer") for name in ("reader", "gossip", "oracle")]
    found = compare(graph, rows(), variants=["text"], edges=True)
    assert [each.worth for each in found.edges] == ["better", "not used", "not used"]
    row = found.row("cache:team/reader:team/answerer")
    assert row is not None
    assert {edge.sender: edge.asked for edge in row.edges} == {
        "team/reader": "cache", "team/gossip": "text", "team/oracle": "text",
    }  # fmt: skip


NAME, CONTROL = "cache:a:b", "mismatched:a:b"


def judged(over_text: float, over_control: float | None, seconds: float, nats: float | None = None) -> EdgeWorth:
    """The judgement of an edge with these differences; one of 0.1 or more is shown. `nats` is over the control, too."""
    base = compare(two_edges(), rows(4), variants=["text"], metrics=["contains"])

    def difference(baseline: str, value: float, metric: str = "contains") -> Difference:
        wide = 0.05 if abs(value) >= 0.1 else 0.5
        return Difference(
            variant=NAME, baseline=baseline, metric=metric, value=value, low=value - wide, high=value + wide,
            p=0.001 if abs(value) >= 0.1 else 0.5, test="McNemar, exact", detectable=0.75,
        )  # fmt: skip

    edge = EdgeSummary(
        sender="a", receiver="b", asked="cache", used={"cache": 4}, bytes=9.0, positions_fused=0, positions_grafted=3
    )
    text = base.rows[0].model_copy(update={"edges": [edge.model_copy(update={"bytes": 2.0})]})
    rows_ = [text, VariantRow(name=NAME, description="", examples=4, cache_share=1.0, edges=[edge])]
    differences = [difference("text", over_text)]
    if over_control is not None:
        rows_.append(VariantRow(name=CONTROL, description="", examples=4, cache_share=1.0))
        differences.append(difference(CONTROL, over_control))
    metrics = base.metrics
    if nats is not None:
        metrics = [*metrics, MetricInfo(name="answer_logprob", unit="nats")]
        differences.append(difference(CONTROL, nats, "answer_logprob"))
    records = base.records + [
        each.model_copy(update={"variant": NAME, "seconds": each.seconds + seconds}) for each in base.records
    ]
    found = base.model_copy(update={"rows": rows_, "differences": differences, "records": records, "metrics": metrics})
    (worth,) = edge_worths(found, [("a", "b")], {})
    assert (worth.bytes, worth.bytes_as_text) == (9.0, 2.0)
    assert isinstance(worth.seconds, Estimate)
    return worth


@pytest.mark.parametrize(
    ("over_text", "over_control", "seconds", "worth"),
    [
        (0.2, 0.3, 1.0, "better"),
        (0.2, 0.0, -1.0, "not used"),  # another example's cache does as well: the gain is no communication
        (0.0, 0.0, -1.0, "not used"),
        (0.0, 0.3, -1.0, "faster"),
        (0.0, 0.3, 1.0, "no gain"),
        (-0.2, 0.3, -1.0, "worse"),
        (0.2, None, -1.0, "unknown"),
        (0.0, -0.3, -1.0, "not used"),
    ],
)
def test_an_edge_is_worth_a_cache_only_if_its_control_shows_that_the_cache_is_used(
    over_text: float, over_control: float | None, seconds: float, worth: str
) -> None:
    good = worth in ("better", "faster")
    head = "worth a cache, each edge alone: a → b" if good else "no edge alone is worth a cache"
    found = judged(over_text, over_control, seconds)
    assert (found.worth, edge_sentences([found])[0]) == (worth, head)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (1.0, "; a run takes 1.000 s more (1.000 to 1.000"),
        (-1.0, "; a run takes 1.000 s less (1.000 to 1.000"),
        (0.0, "; no difference in time is shown (+0.000 s, +0.000 to +0.000"),
    ],
)
def test_a_better_edge_says_how_much_more_or_less_time_a_run_takes(seconds: float, said: str) -> None:
    assert said in judged(0.2, 0.3, seconds).why


def test_use_that_is_not_shown_comes_with_what_is_detectable_and_with_the_metric_that_shows_it() -> None:
    why = judged(0.2, 0.05, 1.0, nats=2.0).why
    assert why.endswith(
        "no communication shown on this edge (detectable with 4 examples: 75.0 points; by answer_logprob, "
        "cache:a:b beats mismatched:a:b by 2.000 nats (1.950 to 2.050))"
    )
    assert judged(0.2, -0.3, 1.0, nats=2.0).why.endswith("no communication shown on this edge")
