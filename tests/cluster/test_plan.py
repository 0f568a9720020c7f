"""What would go where is known before anything loads. No test here needs Ray."""

from pathlib import Path
from typing import Any

import pytest
from tiny import config_of, save_model

from cachegraph import Graph
from cachegraph.cluster.placement import NodeResources
from cachegraph.cluster.plan import need_of, plan_cluster
from cachegraph.engine.spec import ModelSpec, Replicas
from cachegraph.errors import ConfigError

NODES = [NodeResources("x", 10**9, 1.0), NodeResources("y", 10**9, 1.0)]


def graph(folder: Path, **options: Any) -> Graph:
    if not (folder / "small").exists():
        save_model(config_of("llama"), folder / "small")
    small = ModelSpec(source=str(folder / "small"), dtype="float32", **options)
    graph = Graph(models={"small": small, "away": "some/where"}, folder=folder, output="writer")
    graph.add_input("document").add_agent(
        "reader", model="small", prompt="{{ document }}", generate={"max_new_tokens": 0}
    )
    graph.add_agent("writer", model="small", prompt="{{ reader }} {{ critic }}").add_edge("reader", "writer", "cache")
    graph.add_agent("critic", model="away", prompt="{{ document }}")
    return graph.add_edge("critic", "writer")


def test_the_plan_names_memory_bytes_of_edges_and_nodes(tmp_path: Path) -> None:
    made = graph(tmp_path, gpus=0.5)
    lines = plan_cluster(made.spec, tmp_path, NODES).lines()
    kinds = {line.split(":")[0]: line for line in lines}
    assert "1 replica, about" in kinds["model small"]
    assert "0.5 GPU each; on " in kinds["model small"]
    assert "memory unknown, 1 GPU each" in kinds["model away"]
    # 3 layers x 2 heads x (8 + 8) x 4 bytes
    assert kinds["edge reader -> writer"].endswith("cache, about 384 B a token, within a node")
    assert kinds["edge critic -> writer"].endswith("text")
    assert kinds["note"].startswith("note: 'away' is not on this disk")


def test_a_replica_takes_what_the_recipe_says_or_else_a_gpu_where_there_are_any() -> None:
    spec = ModelSpec(source="m")
    assert need_of(spec, 5, has_gpus=True).gpus == 1.0
    assert need_of(spec, 5, has_gpus=False).gpus == 0.0
    assert need_of(spec.model_copy(update={"device": "cpu"}), 5, has_gpus=True).gpus == 0.0
    assert need_of(ModelSpec(source="m", gpus=0, memory="2GB"), 5, has_gpus=True).memory == 2_000_000_000


def test_too_few_gpus_are_refused_before_anything_loads(tmp_path: Path) -> None:
    made = graph(tmp_path, gpus=1, replicas=Replicas(min=4))
    with pytest.raises(ConfigError, match=r"the models need 5 GPUs \(4 x 1 for 'small' \+ 1 x 1 for 'away'\)"):
        plan_cluster(made.spec, tmp_path, NODES)


def test_replicas_below_their_least_number_are_refused() -> None:
    with pytest.raises(ValueError, match="max is 1 and min 2"):
        Replicas(min=2, max=1)
