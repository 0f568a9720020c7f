"""Runs whose caches need more than the object store has: how many bytes are in it at most, and what is recomputed.

Runs at once of two agents of a tiny model with random weights and large caches, in a store of 80 MB. Prints the bytes
of all caches, the most bytes in the store, how many caches were recomputed, and whether the replies equal those of this
process. Needs the extra `ray`.

    python benchmarks/cluster_pressure.py [--runs 32]
"""

import argparse
import threading
from tempfile import TemporaryDirectory
from typing import Any

import ray
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from cachegraph import Graph
from cachegraph.cluster.connect import connect
from cachegraph.cluster.remote_agent import RemoteAgent
from cachegraph.testing import tiny_model

STORE = 80_000_000  # bytes; Ray takes no less


def save_model(folder: str) -> None:
    """A model with 16 KB of cache a token."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    sizes = {"hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 64}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 1024}
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, **sizes, **heads)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pair(folder: str) -> Graph:
    """A reader, and a writer who takes its cache."""
    graph = Graph(models={"model": {"source": folder, "dtype": "float32"}}, output="writer").add_input("title")
    text = "{{ title }} " + "the sky is blue " * 30
    graph.add_agent("reader", model="model", prompt=text, generate={"max_new_tokens": 0})
    graph.add_agent("writer", model="model", prompt="{{ reader }} and?", generate={"max_new_tokens": 3})
    return graph.add_edge("reader", "writer", "cache")


def watch(most: list[float], stop: threading.Event) -> None:
    """Keep the most bytes in the store."""
    total = ray.cluster_resources()["object_store_memory"]
    while not stop.wait(0.05):
        most[0] = max(most[0], total - ray.available_resources().get("object_store_memory", 0.0))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=32)
    rows = [{"title": str(number)} for number in range(parser.parse_args().runs)]
    recomputed, most, stop = [0], [0.0], threading.Event()
    rebuild = RemoteAgent.rebuild

    async def counted(agent: RemoteAgent, *given: Any) -> Any:
        recomputed[0] += 1
        return await rebuild(agent, *given)

    RemoteAgent.rebuild = counted  # type: ignore[assignment, method-assign]
    with TemporaryDirectory() as folder:
        save_model(folder)
        graph = pair(folder)
        with connect("local", cpus=2, object_store_bytes=STORE) as cluster, graph.on_cluster(cluster) as there:
            watching = threading.Thread(target=watch, args=(most, stop))
            watching.start()
            found = there.map(rows, max_concurrent=len(rows))
            stop.set()
            watching.join()
        with graph:
            equal = sum(here.text == each.text for here, each in zip(graph.map(rows), found, strict=True))
    needed = sum(each.edges["reader", "writer"].bytes for each in found)
    print(f"{len(found)} runs with {needed / 1e6:.0f} MB of caches in a store of {STORE / 1e6:.0f} MB:")
    print(f"at most {most[0] / 1e6:.0f} MB in the store, {recomputed[0]} caches recomputed, {equal} replies equal")


if __name__ == "__main__":
    main()
