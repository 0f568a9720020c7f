"""Kill replicas at random moments of real runs, and count what survives.

Runs a recipe on Ray on this machine. Once in every run, at a random event, all replicas are killed with SIGKILL. Prints
how many runs finished, how many gave the text of an undisturbed run, and how many streamed a text that differs from the
result. Needs the extra `ray` and the demo models.

    python benchmarks/cluster_kills.py [--runs 10]
"""

import argparse
import os
import random
import signal
from collections import Counter
from contextlib import suppress

import anyio

from cachegraph import Graph
from cachegraph.cluster.cluster import Cluster
from cachegraph.cluster.connect import connect
from cachegraph.errors import RunError
from cachegraph.graph.run.events import TextDelta

RECIPE = "recipes/story-relay.yaml"


def kill(cluster: Cluster) -> int:
    """Kill every replica's process."""
    handles = [handle for replicas in cluster.sets.values() for handle in replicas.handles]
    processes = [handle.facts.process for handle in handles if handle.facts is not None]
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return len(processes)


async def run(graph: Graph, cluster: Cluster, moment: int, counts: Counter[str], expected: str) -> None:
    """One run whose replicas are killed at an event, counted from 0."""
    heard: dict[str, str] = {}
    stream, seen = graph.stream(), 0
    try:
        async for event in stream:
            if isinstance(event, TextDelta):
                heard[event.agent] = heard.get(event.agent, "") + event.text
            if seen == moment:
                counts["replicas killed"] += kill(cluster)
            seen += 1
    except RunError as error:
        counts["runs failed"] += 1
        print(error)
        return
    result = stream.result
    counts["runs finished"] += 1
    counts["texts equal to those of an undisturbed run"] += result.text == expected
    counts["streamed texts that differ from the result"] += any(
        result.agents[name].text != text for name, text in heard.items()
    )


async def events_of(graph: Graph) -> int:
    """How many events an undisturbed run has."""
    count = 0
    async for _ in graph.stream():
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    dice, counts = random.Random(0), Counter[str]()
    with connect("local", object_store_bytes=200 << 20) as cluster:
        graph = Graph.from_yaml(RECIPE).with_channels("cache").on_cluster(cluster)
        expected = graph.run().text
        events = anyio.run(events_of, graph)
        for _ in range(options.runs):
            anyio.run(run, graph, cluster, dice.randrange(1, events - 1), counts, expected)
        graph.close()
    for name, count in counts.items():
        print(f"{name}: {count}")


if __name__ == "__main__":
    main()
