"""A comparison on a cluster finds the numbers of one process, in whichever replica."""

from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from cachegraph import Graph, compare
from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.engine.spec import ModelSpec, Replicas

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster

ROWS: list[dict[str, Any]] = [
    {"document": f"the sky is {colour}, " * 4, "choices": ["blue", "green", "red"], "answer": colour}
    for colour in ("blue", "green", "red", "blue", "green", "red")
]


def test_a_comparison_has_the_same_numbers_in_a_second_replica(
    models: dict[str, ModelSpec], cluster: Any, tmp_path: Path
) -> None:
    made = new_fuser("c2c", Geometry(3, 2, 8), Geometry(3, 2, 16), gate_logit=3.0, hidden_dim=16, intermediate_dim=16)
    card = {"reads": "own-prompt", "alignment": "offsets"}
    object.__setattr__(made, "card", made.card.model_copy(update=card))
    save_fuser(made, tmp_path / "fuser")
    twice = models["small"].model_copy(update={"replicas": Replicas(min=2)})
    graph = Graph(models={"small": twice, "other": models["other"]}, folder=tmp_path, output="answerer")
    graph.add_input("document")
    graph.add_agent("expert", model="other", prompt="{{ document }}", generate={"max_new_tokens": 4})
    graph.add_agent("answerer", model="small", prompt="{{ expert }}{{ document }} the sky is")
    graph.add_edge("expert", "answerer", "cache", fuser="fuser")
    variants = ["text", "cache", "mismatched", "alone"]
    here = compare(graph, ROWS, variants=variants, concurrency=1)
    graph.close()
    moved = graph.on_cluster(cluster).open()
    replicas = next(each for each in cluster.sets.values() if each.model.source == twice.source)
    first, second = replicas.handles
    deadline = monotonic() + 60
    while not second.is_ready:  # a replica that still loads its model is not chosen
        assert monotonic() < deadline
        sleep(0.05)
    with first.working():  # so that turns go to the second one, which knows nothing yet
        there = compare(moved, ROWS, variants=variants, concurrency=1)
    moved.close()

    def numbers(found: Any) -> list[Any]:
        return [(each.key, each.partner, each.reply, each.scores, each.error, each.metrics) for each in found.records]

    assert numbers(there) == numbers(here)
    assert there.warnings == here.warnings
    assert there.environment.models == here.environment.models
    assert second.agents
