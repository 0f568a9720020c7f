"""Many runs of different graphs at once, some cancelled at any moment: does all memory come back, does anybody starve?

Two recipes alternate, on the two demo models: `science-duo.yaml`, whose cache edge fuses, and `document-relay.yaml`,
whose edges graft. Runs arrive at random and a part of them is cancelled at random. Printed are the worst and the median
wait for a model, how long runs took, and what KV memory is in use before, at most, and after.

    python benchmarks/mixed_load.py [--runs 200] [--cancelled 0.3] [--kv-memory 256MB] [--reply 16] [--json]
"""

import argparse
import gc
import json
import os
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import psutil

from cachegraph import Graph
from cachegraph.agents.spec import AgentSpec
from cachegraph.engine.engine import Engine
from cachegraph.graph.run.result import Result

RECIPES = Path(__file__).parents[1] / "recipes"
QUESTIONS = ("Why is the sky blue?", "What do plants breathe?", "Why does ice float?", "What makes the tides?")


@dataclass
class Load:
    """What came of all runs so far."""

    finished: int = 0
    cancelled: int = 0
    waits: list[float] = field(default_factory=list)  # for a model, by agent
    seconds: list[float] = field(default_factory=list)  # by run

    def add(self, result: Result) -> None:
        self.finished += 1
        self.seconds.append(result.seconds)
        self.waits += [agent.timing.queued for agent in result.agents.values()]


def graphs(reply: int) -> list[Graph]:
    """The recipes, with short replies."""
    found = []
    for name in ("science-duo", "document-relay"):
        graph = Graph.from_yaml(RECIPES / f"{name}.yaml")
        agents = {}
        for agent, spec in graph.spec.agents.items():
            assert isinstance(spec, AgentSpec)
            length = min(spec.generate.max_new_tokens, reply)
            agents[agent] = spec.model_copy(
                update={"generate": spec.generate.model_copy(update={"max_new_tokens": length})}
            )
        found.append(graph.with_spec(graph.spec.model_copy(update={"agents": agents})))
    return found


def inputs(graph: Graph, dice: random.Random, longest: int) -> dict[str, str]:
    """A question, and a document of a random length for whoever reads one."""
    text = (Path(__file__).parents[1] / "LICENSE").read_text()
    given = {name: dice.choice(QUESTIONS) for name in graph.spec.inputs}
    if "document" in given:
        given["document"] = text[: dice.randint(100, longest)]
    return given


async def engines_of(all_graphs: list[Graph]) -> list[Engine]:
    found = {}
    for graph in all_graphs:
        for node in (await graph.awire()).nodes:
            engine = node.agent.peer().engine
            assert isinstance(engine, Engine)
            found[id(engine)] = engine
    return list(found.values())


async def in_use(engines: list[Engine]) -> int:
    """Bytes of KV that somebody still holds; what is kept of earlier prompts is dropped first."""
    for engine in engines:
        await engine.forget()
        await engine.call(int)
    gc.collect()
    return sum(engine.kv_use().used for engine in engines)


async def play(graph: Graph, given: dict[str, str], load: Load, deadline: float) -> None:
    with anyio.move_on_after(deadline) as scope:
        load.add(await graph.arun(given))
    load.cancelled += scope.cancelled_caught


async def measure(options: argparse.Namespace) -> dict[str, float]:
    dice, load, all_graphs = random.Random(options.seed), Load(), graphs(options.reply)
    engines = await engines_of(all_graphs)
    began = time.perf_counter()
    for graph in all_graphs:  # nobody pays for waking up the models
        await graph.arun(inputs(graph, dice, options.document))
    typical = (time.perf_counter() - began) / len(all_graphs) * 4
    before, resident = await in_use(engines), psutil.Process().memory_info().rss
    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for number in range(options.runs):
            deadline = dice.random() * typical if dice.random() < options.cancelled else float("inf")
            graph = all_graphs[number % 2]
            group.start_soon(play, graph, inputs(graph, dice, options.document), load, deadline)
            await anyio.sleep(dice.expovariate(options.arrivals))
    seconds = time.perf_counter() - began
    report = {
        "finished": load.finished,
        "cancelled": load.cancelled,
        "seconds": seconds,
        "worst_wait": max(load.waits, default=0.0),
        "median_wait": statistics.median(load.waits) if load.waits else 0.0,
        "longest_run": max(load.seconds, default=0.0),
        "median_run": statistics.median(load.seconds) if load.seconds else 0.0,
        "kv_before": before,
        "kv_peak": sum(engine.kv_use().peak for engine in engines),
        "kv_budget": sum(engine.kv_use().budget for engine in engines),
        "kv_after": await in_use(engines),
        "resident_before": resident,
        "resident_after": psutil.Process().memory_info().rss,
    }
    for graph in all_graphs:
        await graph.aclose()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--cancelled", type=float, default=0.3, help="the part of the runs that is cancelled")
    parser.add_argument("--arrivals", type=float, default=4.0, help="runs a second that arrive")
    parser.add_argument("--kv-memory", default="256MB", help="of each engine")
    parser.add_argument("--reply", type=int, default=16, help="tokens at most")
    parser.add_argument("--document", type=int, default=4000, help="characters at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["CACHEGRAPH_KV_MEMORY"] = options.kv_memory
    report = anyio.run(measure, options)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for name, value in report.items():
        unit = f"{value / 1e6:,.1f} MB" if name.startswith(("kv", "resident")) else f"{value:,.2f}"
        print(f"{name.replace('_', ' '):16} {unit}")


if __name__ == "__main__":
    main()
