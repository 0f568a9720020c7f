"""A queue of turns starts more replicas, and idle ones end."""

from time import monotonic, sleep
from typing import Any

import pytest

from cachegraph import Graph
from cachegraph.engine.spec import ModelSpec, Replicas

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster


def test_a_queue_starts_a_second_replica_which_ends_when_it_is_idle(
    models: dict[str, ModelSpec], cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachegraph.cluster import replica_set

    two = models["small"].model_copy(update={"replicas": Replicas(min=1, max=2), "kv_memory": 64_000_000})
    graph = Graph(models={"small": two}, output="writer")
    graph.add_input("question")
    settings = {"max_new_tokens": 60, "ignore_eos": True}
    graph.add_agent("writer", model="small", prompt="the sky {{ question }}", generate=settings)
    with graph:
        expected = graph.run(question="1").text
    there = graph.on_cluster(cluster).open()
    (replicas,) = [each for each in cluster.sets.values() if each.model.replicas.max == 2]
    (first,) = replicas.handles
    deadline = monotonic() + 120
    while not (len(replicas.handles) == 2 and replicas.handles[1].agents):  # until the second one has taken a turn
        assert monotonic() < deadline
        rows = [{"question": str(number)} for number in range(12)]
        assert there.map(rows, max_concurrent=12)[1].text == expected
    assert replicas.started == 2

    monkeypatch.setattr(replica_set, "IDLE_SECONDS", 0.1)
    replicas._look()  # as a minute later
    while replicas.handles != [first]:
        assert monotonic() < deadline
        sleep(0.05)
    there.close()
