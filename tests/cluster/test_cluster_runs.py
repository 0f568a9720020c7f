"""Graphs on Ray reply what they reply in this process, bit for bit, over every kind of edge."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from cachegraph import Graph
from cachegraph.channels.fusers.files.card import Geometry, ModelEnd
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.channels.fusers.networks.translator import new_translator
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import ConfigError, RunError
from cachegraph.graph.run.events import TextDelta
from cachegraph.graph.run.result import Result

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster

Specs = dict[str, ModelSpec]
DOCUMENT = "the sea is green and the sky is blue, " * 6
SHORT = {"max_new_tokens": 8}


def relay(models: Specs, channel: Any, **reader: Any) -> Graph:
    """One reader, two answerers, and one who reads both; all of one model."""
    graph = Graph(models={"small": models["small"]}, output="both")
    graph.add_input("document", default=DOCUMENT).add_input("question", default="what is the sky?")
    graph.add_agent("reader", model="small", prompt="{{ document }}", generate={"max_new_tokens": 0} | reader)
    for name, words in (("one", "in short"), ("two", "at length")):
        graph.add_agent(name, model="small", prompt=f"{{{{ reader }}}}\n\n{{{{ question }}}} {words}", generate=SHORT)
        graph.add_edge("reader", name, channel)
    graph.add_agent("both", model="small", prompt="{{ one }} / {{ two }}", generate=SHORT)
    return graph.add_edge("one", "both", channel).add_edge("two", "both", channel)


def duo(models: Specs, folder: Path, **edge: Any) -> Graph:
    """An expert of another model, and an answerer."""
    graph = Graph(models=models, folder=folder, output="answerer")
    graph.add_input("question", default="what is the sky?")
    graph.add_agent("expert", model="other", prompt="{{ question }}", generate=SHORT)
    graph.add_agent("answerer", model="small", prompt="{{ expert }}{{ question }}", generate=SHORT)
    return graph.add_edge("expert", "answerer", "cache", fuser="fuser", fallback="error", **edge)


def save(folder: Path, **card: Any) -> None:
    made = new_fuser("c2c", Geometry(3, 2, 8), Geometry(3, 2, 16), gate_logit=3.0, hidden_dim=16, intermediate_dim=16)
    object.__setattr__(made, "card", made.card.model_copy(update=card))
    save_fuser(made, folder / "fuser")


def same(graph: Graph, cluster: Any) -> tuple[Result, Result]:
    """The results here and there, equal in all but seconds."""
    try:
        here, there = graph.run(), graph.run(cluster=cluster)
    finally:
        graph.close()
    assert there.text == here.text != ""
    assert there.warnings == here.warnings
    for name, agent in here.agents.items():
        other = there.agents[name]
        assert (other.text, other.finish_reason, other.model) == (agent.text, agent.finish_reason, agent.model)
        assert (other.tokens.prefilled, other.tokens.generated) == (agent.tokens.prefilled, agent.tokens.generated)
    for pair, report in here.edges.items():
        other_report = there.edges[pair]
        for key in ("channel_used", "fallback_reason", "bytes", "positions_fused", "positions_grafted", "residuals"):
            assert getattr(other_report, key) == getattr(report, key)
    return here, there


@pytest.mark.parametrize("channel", ["text", "cache", "both"])
def test_agents_of_one_model_reply_the_same_on_a_cluster(models: Specs, cluster: Any, channel: str) -> None:
    _, there = same(relay(models, channel), cluster)
    report = there.edges["reader", "one"]
    assert (report.positions_grafted > 5) == (channel != "text")
    assert set(report.seconds) >= ({"store", "fetch"} if channel != "text" else set())


@pytest.mark.parametrize("reads", ["receiver-prompt", "own-prompt"])
@pytest.mark.parametrize("include_response", [False, True])
def test_a_sharer_in_another_replica_corrects_the_same_positions(
    models: Specs, cluster: Any, tmp_path: Path, reads: str, include_response: bool
) -> None:
    save(tmp_path, reads=reads, alignment="offsets")
    _, there = same(duo(models, tmp_path, include_response=include_response), cluster)
    assert there.edges["expert", "answerer"].positions_fused > 0


def test_a_translated_cache_is_translated_where_the_receiver_is(models: Specs, cluster: Any, tmp_path: Path) -> None:
    ends = (ModelEnd(name="small", geometry=Geometry(3, 2, 8)), ModelEnd(name="other", geometry=Geometry(3, 2, 16)))
    made = new_translator(*ends, rank=6, hidden=5, seed=1)
    made.network.gate.data.fill_(0.7)
    save_fuser(made, tmp_path / "fuser")
    _, there = same(duo(models, tmp_path), cluster)
    assert there.edges["expert", "answerer"].positions_grafted > 0


def test_loops_lists_and_included_graphs_join_caches_by_reference(models: Specs, cluster: Any) -> None:
    graph = Graph(models={"small": models["small"]}, output="judge")
    graph.add_input("question", default="what is the sky?")
    graph.add_agent(
        "each", model="small", prompt="{{ word }}", for_each="question.split()", generate=SHORT, **{"as": "word"}
    )
    graph.add_agent("judge", model="small", prompt="{{ each }}\n{{ question }}", generate=SHORT)
    graph.add_edge("each", "judge", "cache")
    _, there = same(graph, cluster)
    assert there.edges["each", "judge"].positions_grafted > 5


def test_every_edge_event_and_piece_of_text_arrives_once(models: Specs, cluster: Any) -> None:
    graph = relay(models, "cache").on_cluster(cluster)

    async def listen() -> tuple[dict[str, str], Result]:
        heard: dict[str, str] = {}
        stream = graph.stream()
        async for event in stream:
            if isinstance(event, TextDelta):
                heard[event.agent] = heard.get(event.agent, "") + event.text
        return heard, stream.result

    heard, result = anyio.run(listen, backend="trio")
    graph.close()
    assert heard == {name: result.agents[name].text for name in ("one", "two", "both")}


def test_a_cancelled_run_ends_its_turn_in_the_replica(models: Specs, cluster: Any) -> None:
    graph = Graph(models={"small": models["small"]}, output="writer")
    graph.add_agent("writer", model="small", prompt="x", generate={"max_new_tokens": 480, "ignore_eos": True})
    graph = graph.on_cluster(cluster).open()
    (replicas,) = [each for each in cluster.sets.values() if each.model == models["small"]]
    handles = replicas.handles

    async def at_work(turns: int) -> None:
        from cachegraph.cluster.wait import result_of

        with anyio.fail_after(30):
            while sum([await result_of(handle.actor.at_work.remote()) for handle in handles]) != turns:
                pass

    async def run() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(graph.arun)
            await at_work(1)
            group.cancel_scope.cancel()
        await at_work(0)

    anyio.run(run)
    assert not any(handle.at_work for handle in handles)
    graph.close()


def test_a_model_that_is_missing_on_the_node_is_named(cluster: Any, tmp_path: Path) -> None:
    graph = Graph(output="a", models={"m": ModelSpec(source=str(tmp_path / "nowhere"))})
    graph.add_agent("a", model="m", prompt="hello")
    with pytest.raises(Exception, match="nowhere.*on a node of the cluster"):
        graph.run(cluster=cluster)


def test_a_model_that_fits_no_node_is_named_by_its_source(models: Specs, cluster: Any) -> None:
    large = models["small"].model_copy(update={"memory": 10**15, "kv_memory": 2**28})
    graph = Graph(output="a", models={"m": large}).add_agent("a", model="m", prompt="hello")
    with pytest.raises(ConfigError) as raised:
        graph.run(cluster=cluster)
    graph.close()
    assert f"of '{large.source} (2)' fits no node: it needs 1000000.00 GB, and beside" in str(raised.value)
    same(relay(models, "text"), cluster)  # what didn't fit takes no room


def test_an_agents_error_is_its_own(models: Specs, cluster: Any) -> None:
    graph = relay(models, "text")
    with pytest.raises(RunError, match="^agent '(one|two)' failed: the prompt of agent '(one|two)' has .* tokens"):
        graph.run(document=DOCUMENT * 20, cluster=cluster)
    graph.close()
