"""What an agent and a cache edge cost on Ray, against the same graph in this process.

A chain of agents of a tiny model with random weights, each of which writes one token, over text edges: the difference
of both runs is the cost of the agents. Then a reader of the demo model whose cache a second agent takes: its seconds in
the object store and out of it, against one copy of as many bytes. Once each for texts that are new, and for one that
the reader's replica has read before. Needs the extra `ray` and a demo model.

    python benchmarks/cluster_overhead.py [--quick]
"""

import time
from collections.abc import Sequence

import torch
from measuring import Range, alternate, machine, options, parsed, ratios, seconds

from cachegraph import Graph
from cachegraph.channels.payload import EdgeReport
from cachegraph.cluster.connect import connect
from cachegraph.testing import tiny_model

MODEL = "smollm2-135m-instruct"


def chain(agents: int) -> Graph:
    """Agents in a row, each of which reads the one before it."""
    graph = Graph(models={"tiny": {"source": tiny_model(), "dtype": "float32"}}, output=f"a{agents - 1}")
    for number in range(agents):
        prompt = f"{{{{ a{number - 1} }}}} next" if number else "begin"
        graph.add_agent(f"a{number}", model="tiny", prompt=prompt, generate={"max_new_tokens": 1})
        if number:
            graph.add_edge(f"a{number - 1}", f"a{number}")
    return graph


def pair(words: int) -> Graph:
    """A reader of so many words, and a writer who takes its cache."""
    graph = Graph(output="writer")
    graph.add_input("title")
    text = "{{ title }} " + "the sky is blue " * (words // 4)
    graph.add_agent("reader", model=MODEL, prompt=text, generate={"max_new_tokens": 0})
    graph.add_agent("writer", model=MODEL, prompt="{{ reader }} and?", generate={"max_new_tokens": 1})
    return graph.add_edge("reader", "writer", "cache")


def copying(size: int) -> float:
    """The seconds of one copy of so many bytes."""
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    began = time.perf_counter()
    target.copy_(source)
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = parsed(options(__doc__ or "", agents=(16, 4), words=(1600, 160)), arguments)
    print(machine())
    with connect("local", object_store_bytes=300 << 20) as cluster:
        here = chain(given.agents)
        with here, here.on_cluster(cluster) as there:
            runs = {"here": seconds(here.run), "ray": seconds(there.run)}
            found = alternate(runs, given.repeats)
        cost = [(ray - own) / given.agents * 1000 for ray, own in zip(found["ray"], found["here"], strict=True)]
        print(f"an agent on Ray costs {Range(cost):.2f} ms more; the run takes {_times(found)} as long")
        with pair(given.words).on_cluster(cluster) as graph:
            for title in ("first", "read before", "read before"):
                graph.run(title=title)
            for kind, titles in (("new", range(given.repeats)), ("read before", ["read before"] * given.repeats)):
                describe(kind, [graph.run(title=str(title)).edges["reader", "writer"] for title in titles])


def describe(kind: str, reports: Sequence[EdgeReport]) -> None:
    """Print the seconds of a cache on the way, against one copy of its bytes."""
    size = reports[0].bytes
    moved = [report.seconds["store"] + report.seconds["fetch"] for report in reports]
    copied = [copying(size) for _ in moved]
    print(f"the cache of a text that is {kind}, {size / 1e6:.1f} MB: {Range([each * 1000 for each in moved]):.1f} ms")
    print(f"    to the store and out of it, {ratios(moved, copied):.1f} times one copy of", end=" ")
    print(f"{Range([each * 1000 for each in copied]):.1f} ms")


def _times(found: dict[str, list[float]]) -> str:
    return f"{ratios(found['ray'], found['here']):.2f} times"


if __name__ == "__main__":
    main()
