"""Ray on this machine, once for all tests of a file, with tiny models that its replicas load from a folder."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from tiny import config_of, save_model, save_tokenizer

from cachegraph.engine.spec import ModelSpec

if TYPE_CHECKING:
    from cachegraph.cluster.cluster import Cluster


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    """Two tiny models of different geometry with one tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    specs = {}
    for name, kind, seed in (("small", "llama", 0), ("other", "qwen3", 1)):
        save_model(config_of(kind), folder / name, seed=seed)
        save_tokenizer(folder / name)
        specs[name] = ModelSpec(source=str(folder / name), dtype="float32")
    return specs


@pytest.fixture(scope="session")
def cluster(models: dict[str, ModelSpec]) -> "Iterator[Cluster]":
    """A cluster of this machine. A graph keeps a replica of both models there until the last test."""
    pytest.importorskip("ray")
    from cachegraph import Graph
    from cachegraph.cluster.connect import connect

    graph = Graph(models=models, output="a")
    graph.add_agent("a", model="small", prompt="x").add_agent("b", model="other", prompt="{{ a }}").add_edge("a", "b")
    graph.output = "b"
    with connect("local", cpus=2, object_store_bytes=150 << 20) as connected, graph.on_cluster(connected):
        yield connected
