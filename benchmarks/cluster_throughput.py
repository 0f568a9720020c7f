"""Runs a minute of a recipe in this process, and on Ray with one and with two replicas of each model.

Replicas share the cores of this machine, so that two of them show what sharing costs. Needs the extra `ray` and
the demo models.

    python benchmarks/cluster_throughput.py [--runs 64]
"""

import argparse
import time
from collections.abc import Callable

from measuring import machine, seconds

from cachegraph import Graph
from cachegraph.cluster.cluster import Cluster
from cachegraph.cluster.connect import connect
from cachegraph.engine.spec import ModelSpec, Replicas

RECIPE = "recipes/story-relay.yaml"


def recipe(replicas: int) -> Graph:
    """The recipe, with so many replicas of each model."""
    graph = Graph.from_yaml(RECIPE).with_channels("cache")
    models = {
        name: ModelSpec.model_validate({"source": source, "replicas": Replicas(min=replicas)})
        for name, source in graph.spec.models.items()
    }
    return graph.with_spec(graph.spec.model_copy(update={"models": models}))


def timed(graph: Graph, runs: int, cluster: Cluster | None = None) -> float:
    """The seconds of so many runs, 16 at once, after one that loads the models, in all replicas."""
    rows = [{"question": f"What does Anna carry up the steps? ({number})"} for number in range(runs)]
    with graph:
        graph.map(rows[:1])
        while cluster is not None and not all(each.is_ready for one in cluster.sets.values() for each in one.handles):
            time.sleep(0.1)
        work: Callable[[], float] = seconds(lambda: graph.map(rows))
        return work()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=64)
    runs = parser.parse_args().runs
    print(machine())
    own = timed(recipe(1), runs)
    print(f"in this process: {runs / own * 60:.1f} runs a minute", flush=True)
    for replicas in (1, 2):
        with connect("local", object_store_bytes=300 << 20) as cluster:
            took = timed(recipe(replicas).on_cluster(cluster), runs, cluster)
        print(
            f"{replicas} of each model on Ray: {runs / took * 60:.1f} runs a minute, {own / took:.2f} times", flush=True
        )


if __name__ == "__main__":
    main()
