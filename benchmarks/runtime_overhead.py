"""What the runtime itself costs: CPU time per agent for graphs of agents that do nothing.

Beside it, in the same process and in turns, the least that could do the job: an anyio task group in which every node
is a task that a counter sets free. What is between the two are results, timings, messages and the checks of a run.

    python benchmarks/runtime_overhead.py [--agents 1000] [--rounds 15] [--backend asyncio|trio] [--json]
"""

import argparse
import gc
import json
from collections.abc import Awaitable, Callable
from statistics import median
from time import thread_time

import anyio

from cachegraph import Graph
from cachegraph.agents.base import Reply, Turn
from cachegraph.channels.payload import Payload
from cachegraph.channels.peer import Peer

Edges = list[tuple[int, int]]


class Idle:
    """An agent that says nothing at once."""

    def __init__(self, name: str, *_: object, **__: object):
        self.name = name

    async def open(self) -> None: ...

    def peer(self) -> Peer:
        return Peer(self.name, "none")

    async def turn(self, turn: Turn) -> Reply:
        return Reply(Payload(self.name, ""))

    async def close(self) -> None: ...


def chain(count: int) -> Edges:
    return [(i, i + 1) for i in range(count - 1)]


def fan_out(count: int) -> Edges:
    """One agent sets all others free, and a last one waits for them: a graph has one output."""
    return [(0, i) for i in range(1, count - 1)] + [(i, count - 1) for i in range(1, count - 1)]


def built(count: int, edges: Edges) -> Graph:
    return Graph(
        agents={f"n{i}": {"model": "none", "prompt": ""} for i in range(count)},
        edges=[{"from": f"n{sender}", "to": f"n{receiver}"} for sender, receiver in edges],
        output=f"n{count - 1}",
        create=Idle,
    )


def bare(count: int, edges: Edges) -> Callable[[], Awaitable[object]]:
    """The same graph as tasks and counters, and nothing else."""
    following: list[list[int]] = [[] for _ in range(count)]
    needed = [0] * count
    for sender, receiver in edges:
        following[sender].append(receiver)
        needed[receiver] += 1

    async def execute() -> None:
        waits = list(needed)

        async def serve(node: int) -> None:
            for receiver in following[node]:
                waits[receiver] -= 1
                if not waits[receiver]:
                    group.start_soon(serve, receiver)

        async with anyio.create_task_group() as group:
            group.start_soon(serve, 0)

    return execute


async def measure(count: int, rounds: int) -> dict[str, dict[str, float]]:
    report = {}
    for shape in (chain, fan_out):
        edges = shape(count)
        graph = await built(count, edges).aopen()
        contenders: dict[str, Callable[[], Awaitable[object]]] = {"cachegraph": graph.arun, "bare": bare(count, edges)}
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds + 2):
            for name, execute in contenders.items():
                gc.collect()
                begin = thread_time()
                await execute()
                seconds[name].append(thread_time() - begin)
        medians = {name: median(times[2:]) / count * 1e6 for name, times in seconds.items()}
        ratio = median(ours / theirs for ours, theirs in zip(*(times[2:] for times in seconds.values()), strict=True))
        report[shape.__name__] = {
            **{name: round(value, 1) for name, value in medians.items()},
            "ratio": round(ratio, 2),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU microseconds per agent that does nothing.")
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = anyio.run(measure, options.agents, options.rounds, backend=options.backend)
    if options.json:
        print(json.dumps({"agents": options.agents, "backend": options.backend, "microseconds": report}))
        return
    print(f"{options.agents} agents, {options.backend}, CPU microseconds per agent (median of {options.rounds} rounds)")
    for shape, row in report.items():
        print(
            f"{shape:8}  cachegraph {row['cachegraph']:6.1f}   bare anyio {row['bare']:6.1f}   ratio {row['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
