"""A server whose models run on Ray streams, runs requests at once, ends what clients leave, and survives deaths."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from clusters import kill_replicas
from live_server import Running, served, wait_until

from cachegraph import Graph
from cachegraph.engine.spec import ModelSpec

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster

LONG = {"max_new_tokens": 400, "ignore_eos": True}


def pair(models: dict[str, ModelSpec]) -> Graph:
    """A reader, and a writer who takes its cache."""
    graph = Graph(models={"small": models["small"]}, name="pair", output="writer")
    graph.add_input("question")
    graph.add_agent("reader", model="small", prompt="the sky is blue", generate={"max_new_tokens": 0})
    graph.add_agent("writer", model="small", prompt="{{ reader }} {{ question }}", generate=LONG, memory={"turns": 1})
    return graph.add_edge("reader", "writer", "cache")


@pytest.fixture(scope="module")
def server(models: dict[str, ModelSpec], cluster: Any) -> Iterator[Running]:
    graph = pair(models).on_cluster(cluster)
    with served([graph]) as running:
        yield running
    graph.close()


def question(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "pair", "messages": [{"role": "user", "content": text}], **more}


def replies(running: Running, text: str, **more: Any) -> str:
    answer = running.post("/v1/chat/completions", question(text, **more))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def replicas(cluster: Any) -> list[Any]:
    return [handle for each in cluster.sets.values() for handle in each.handles if handle.facts]


def pieces(stream: Any) -> Iterator[str]:
    for chunk in stream:
        if chunk.choices and (piece := chunk.choices[0].delta.content):
            yield piece


def test_requests_at_once_and_streams_have_the_replies_of_one_process(
    models: dict[str, ModelSpec], server: Running
) -> None:
    with pair(models) as graph:
        expected = {text: graph.run(question=text).text for text in ("what?", "why?")}
    with ThreadPoolExecutor() as threads:
        found = dict(zip(expected, threads.map(lambda text: replies(server, text), expected), strict=True))
    assert found == expected
    stream = server.openai().chat.completions.create(**question("what?"), stream=True)
    assert "".join(pieces(stream)) == expected["what?"]


def test_a_session_of_a_server_continues_in_replicas(
    models: dict[str, ModelSpec], server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    settings = {"max_tokens": 8}
    found = [replies(server, text, session="there", **settings) for text in ("what?", "why?")]
    with pair(models) as graph:
        short = graph.with_settings(max_new_tokens=8)
        expected = [short.run(question=text, session="here").text for text in ("what?", "why?")]
        assert found == expected
        assert short.run(question="why?").text != expected[1]


def test_a_replica_shows_the_prompts_of_a_run_by_origin_with_the_tokens_of_a_cache(server: Running) -> None:
    run = server.post("/runs", {"graph": "pair", "inputs": {"question": "what?"}}).json()["id"]
    wait_until(lambda: server.get(f"/runs/{run}").json()["status"] == "finished")
    prompt = server.get(f"/runs/{run}/prompt?turn=writer").json()
    assert {"grafted": "the sky is blue", "words": "what?"}.items() <= {
        part["kind"]: part["text"].strip() for part in prompt["parts"]
    }.items()
    (alignment,) = prompt["edges"]["reader"]
    assert len(alignment["pairs"]) == len(alignment["sharer"])
    assert server.get(f"/runs/{run}/prompt?turn=reader").json()["tokens"] > 0


def test_a_client_that_leaves_ends_its_turn_in_the_replica(server: Running, cluster: Any) -> None:
    stream = server.openai().chat.completions.create(**question("what?"), stream=True)
    next(pieces(stream))
    stream.close()
    deadline = monotonic() + 60
    while any(handle.at_work for handle in replicas(cluster)) or server.queue.running:
        assert monotonic() < deadline
        sleep(0.05)


def test_a_stream_goes_on_when_its_replica_is_killed(server: Running, cluster: Any) -> None:
    expected = replies(server, "why?")
    stream = pieces(server.openai().chat.completions.create(**question("why?"), stream=True))
    heard = next(stream)
    assert kill_replicas(cluster)
    assert heard + "".join(stream) == expected
    assert json.loads(server.get("/health").text)
