"""Replicas that die at any moment: the run goes on in another one, and nothing is spoken twice."""

from pathlib import Path
from typing import Any

import anyio
import pytest
from clusters import kill_replicas

from cachegraph import Graph
from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.engine.spec import ModelSpec
from cachegraph.graph.run.events import AgentFinished, AgentStarted, Event, TextDelta
from cachegraph.graph.run.result import Result

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster

Specs = dict[str, ModelSpec]


def chain(models: Specs, **generate: Any) -> Graph:
    """Three agents of one model; each hands its cache to the next."""
    graph = Graph(models={"small": models["small"]}, output="third")
    graph.add_input("document", default="the sea is green and the sky is blue, " * 3)
    settings = {"max_new_tokens": 40, "ignore_eos": True, **generate}
    graph.add_agent("first", model="small", prompt="{{ document }} what is the sky?", generate=settings)
    graph.add_agent("second", model="small", prompt="{{ first }} what is the sea?", generate=settings)
    graph.add_agent("third", model="small", prompt="{{ second }} and the question?", generate=settings)
    return graph.add_edge("first", "second", "cache").add_edge("second", "third", "cache")


def is_third_piece(event: Event, pieces: list[int]) -> bool:
    pieces[0] += isinstance(event, TextDelta) and event.agent == "second"
    return pieces[0] == 3


def starts(event: Event, _: list[int]) -> bool:
    return isinstance(event, AgentStarted) and event.agent == "second"


def has_ended(event: Event, _: list[int]) -> bool:
    return isinstance(event, AgentFinished) and event.agent == "first"


@pytest.mark.parametrize("moment", [starts, is_third_piece, has_ended], ids=lambda moment: moment.__name__)
def test_a_run_survives_the_death_of_every_replica(models: Specs, cluster: Any, moment: Any) -> None:
    graph = chain(models)
    expected = graph.run()
    there, killed, pieces = graph.on_cluster(cluster), [0], [0]

    async def run() -> tuple[dict[str, str], Result]:
        heard: dict[str, str] = {}
        stream = there.stream()
        async for event in stream:
            if isinstance(event, TextDelta):
                heard[event.agent] = heard.get(event.agent, "") + event.text
            if not killed[0] and moment(event, pieces):
                killed[0] = kill_replicas(cluster)
        return heard, stream.result

    heard, result = anyio.run(run)
    there.close()
    graph.close()
    assert killed[0] > 0
    texts = {name: agent.text for name, agent in expected.agents.items()}
    assert {name: agent.text for name, agent in result.agents.items()} == texts
    assert heard == texts
    assert result.edges["second", "third"].channel_used == "cache"
    assert result.edges["second", "third"].positions_grafted == expected.edges["second", "third"].positions_grafted


def test_a_sampled_reply_continues_with_the_text_that_was_streamed(models: Specs, cluster: Any) -> None:
    graph = chain(models, temperature=1.5).on_cluster(cluster)
    killed, pieces = [0], [0]

    async def run() -> tuple[str, Result]:
        heard, stream = "", graph.stream()
        async for event in stream:
            if isinstance(event, TextDelta) and event.agent == "second":
                heard += event.text
            if not killed[0] and is_third_piece(event, pieces):
                killed[0] = kill_replicas(cluster)
        return heard, stream.result

    heard, result = anyio.run(run)
    graph.close()
    assert killed[0]
    assert heard == result.agents["second"].text


@pytest.mark.parametrize("reads", ["own-prompt", "receiver-prompt"])
def test_a_receiver_finds_another_sharer_if_both_have_died(
    models: Specs, cluster: Any, tmp_path: Path, reads: str
) -> None:
    made = new_fuser("c2c", Geometry(3, 2, 8), Geometry(3, 2, 16), gate_logit=3.0, hidden_dim=16, intermediate_dim=16)
    object.__setattr__(made, "card", made.card.model_copy(update={"reads": reads, "alignment": "offsets"}))
    save_fuser(made, tmp_path / "fuser")
    graph = Graph(models=models, folder=tmp_path, output="answerer").add_input("question", default="what is the sky?")
    graph.add_agent("expert", model="other", prompt="{{ question }}", generate={"max_new_tokens": 8})
    graph.add_agent("answerer", model="small", prompt="{{ expert }}{{ question }}", generate={"max_new_tokens": 8})
    graph.add_edge("expert", "answerer", "cache", fuser="fuser", fallback="error")
    expected = graph.run()
    there, killed = graph.on_cluster(cluster), [0]

    async def run() -> Result:
        stream = there.stream()
        async for event in stream:
            if not killed[0] and isinstance(event, AgentFinished) and event.agent == "expert":
                killed[0] = kill_replicas(cluster)
        return stream.result

    result = anyio.run(run)
    there.close()
    graph.close()
    assert killed[0] >= 2
    assert result.text == expected.text
    assert result.edges["expert", "answerer"].positions_fused > 0
