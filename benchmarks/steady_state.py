"""Steady state against a fresh burst: prefix hit rate and speed after hundreds of runs of two graphs on two models.

`document-relay.yaml` grafts and `story-relay.yaml` translates; runs alternate between them, several at a time.
Documents come from a pool, popular ones often, each with questions of a pool. Measured are the last runs, when the
prefix cache is full, and then the same runs again on engines whose caches were emptied. A hit is a position of a prompt
that an engine found instead of prefilling it; grafted positions are no hits.

    python benchmarks/steady_state.py [--runs 500] [--window 50] [--documents 60] [--quick] [--json]
"""

import random
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import anyio
from measuring import Range, options, parsed, profiled, progress, ratios, show
from mixed_load import engines_of
from texts import QUESTIONS

from cachegraph import Graph
from cachegraph.agents.spec import AgentSpec
from cachegraph.common.human import format_bytes
from cachegraph.engine.engine import Engine
from cachegraph.graph.run.result import Result

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = ("document-relay", "story-relay")
LICENSE = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")


class Request(NamedTuple):
    """One run: which graph, on which inputs."""

    graph: int
    inputs: dict[str, str]


class Window(NamedTuple):
    """What a number of runs took together. Seconds are wall time; `hits`, `prefilled` and `grafted` are positions."""

    seconds: float
    runs: int
    generated: int
    prefilled: int
    hits: int
    grafted: int
    median_run: float

    @property
    def hit_rate(self) -> float:
        """Of all positions that were prefilled or found."""
        return self.hits / max(self.hits + self.prefilled, 1)


def opened(folder: Path, names: Sequence[str], reply: int) -> list[Graph]:
    """The recipes with short replies."""
    found = []
    for name in names:
        graph = Graph.from_yaml(folder / f"{name}.yaml")
        agents: dict[str, Any] = dict(graph.spec.agents)
        for agent, spec in graph.spec.agents.items():
            if isinstance(spec, AgentSpec):
                length = min(spec.generate.max_new_tokens, reply)
                generate = spec.generate.model_copy(update={"max_new_tokens": length})
                agents[agent] = spec.model_copy(update={"generate": generate})
        found.append(graph.with_spec(graph.spec.model_copy(update={"agents": agents})))
    return found


def requests(graphs: Sequence[Graph], chosen: Namespace, count: int) -> list[Request]:
    """Runs that alternate between graphs. The document of rank r is asked about in proportion to 1/r."""
    dice = random.Random(chosen.seed)
    pool = [
        document(number, dice.randint(chosen.characters // 4, chosen.characters)) for number in range(chosen.documents)
    ]
    weights = [1 / rank for rank in range(1, len(pool) + 1)]
    made = []
    for number in range(count):
        place = number % len(graphs)
        inputs = {name: dice.choice(QUESTIONS) for name in graphs[place].spec.inputs}
        (text,) = dice.choices(pool, weights)
        longest = max(
            graphs[place].spec.inputs, key=lambda name: len(str(graphs[place].spec.inputs[name].default or ""))
        )
        made.append(Request(place, {**inputs, longest: text}))
    return made


def document(number: int, characters: int) -> str:
    """A text of its own from the first word on."""
    at = number * 977 % len(LICENSE)
    return f"Document {number}. {(LICENSE[at:] + LICENSE)[:characters]}"


async def play(graphs: Sequence[Graph], wanted: Sequence[Request], at_once: int) -> Window:
    """Run all requests, so many at a time."""
    results: list[Result] = []
    limiter, began = anyio.CapacityLimiter(at_once), time.perf_counter()

    async def run(request: Request) -> None:
        async with limiter:
            results.append(await graphs[request.graph].arun(request.inputs))
        if len(results) % max(len(wanted) // 10, 1) == 0:
            progress(f"  {len(results)} of {len(wanted)} runs, {time.perf_counter() - began:.0f} s")

    async with anyio.create_task_group() as group:
        for request in wanted:
            group.start_soon(run, request)
    return window(results, time.perf_counter() - began)


def window(results: Sequence[Result], seconds: float) -> Window:
    tokens = [agent.tokens for result in results for agent in result.agents.values()]
    grafted = sum(edge.positions_grafted for result in results for edge in result.edges.values())
    return Window(
        seconds,
        len(results),
        sum(each.generated for each in tokens),
        sum(each.prefilled for each in tokens),
        sum(each.reused for each in tokens) - grafted,
        grafted,
        median(result.seconds for result in results),
    )


async def measure(graphs: Sequence[Graph], chosen: Namespace) -> dict[str, Any]:
    engines = await engines_of(list(graphs))
    wanted = requests(graphs, chosen, chosen.runs + chosen.window)
    for graph in range(len(graphs)):  # models wake up
        await play(graphs, [next(each for each in wanted if each.graph == graph)], 1)
    await emptied(engines)
    progress(f"{chosen.runs} runs until the steady state")
    before = await play(graphs, wanted[: chosen.runs], chosen.at_once)
    kept = sum(engine.kv_use().prefixes for engine in engines)
    windows: dict[str, list[Window]] = {"steady": [], "fresh": []}
    for number in range(chosen.repeats):
        progress(f"round {number + 1} of {chosen.repeats}")
        if number:  # the fresh round before emptied the caches
            await play(graphs, wanted[: chosen.runs], chosen.at_once)
        windows["steady"].append(await play(graphs, wanted[chosen.runs :], chosen.at_once))
        await emptied(engines)
        windows["fresh"].append(await play(graphs, wanted[chosen.runs :], chosen.at_once))
    return {"before": before, "kept_bytes": kept, **windows}


async def emptied(engines: Sequence[Engine]) -> None:
    for engine in engines:
        await engine.forget()


def report(chosen: Namespace, found: dict[str, Any]) -> dict[str, Any]:
    def rates(name: str) -> list[float]:
        return [each.runs / each.seconds for each in found[name]]

    return {
        "title": f"{chosen.window} runs after {chosen.runs}, {chosen.at_once} at a time, {chosen.documents} documents",
        "n": chosen.repeats,
        "kept_bytes": found["kept_bytes"],
        "hit_rate_before": found["before"].hit_rate,
        "windows": {
            name: {
                "hit_rate": Range([each.hit_rate for each in found[name]]),
                "runs_s": Range(rates(name)),
                "median_run_s": Range([each.median_run for each in found[name]]),
                "tokens_s": Range([each.generated / each.seconds for each in found[name]]),
                "prefilled": found[name][0].prefilled,
                "hits": found[name][0].hits,
                "grafted": found[name][0].grafted,
            }
            for name in ("fresh", "steady")
        },
        "steady_over_fresh": ratios(rates("steady"), rates("fresh")),
    }


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["", "hit rate", "runs/s", "median run, s", "tokens/s", "prefilled", "found", "grafted"]
    rows = []
    for name, each in found["windows"].items():
        rates = [
            f"{each['hit_rate']:.0%}",
            f"{each['runs_s']:.2f}",
            f"{each['median_run_s']:.2f}",
            f"{each['tokens_s']:.1f}",
        ]
        rows.append([name, *rates, *(f"{each[key]:,}" for key in ("prefilled", "hits", "grafted"))])
    rows.append(["steady over fresh", "", f"{found['steady_over_fresh']:.2f}", "", "", "", "", ""])
    rows.append(["kept prefixes", format_bytes(found["kept_bytes"]), "", "", "", "", "", ""])
    return head, rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(
        __doc__ or "", repeats=(1, 1), runs=(500, 16), window=(50, 4), documents=(60, 3), characters=(3000, 900),
        reply=(16, 2), at_once=(8, 2),
    )  # fmt: skip
    parser.add_argument("--recipes", type=Path, default=RECIPES, help="the folder of the recipes")
    parser.add_argument("--names", nargs="+", default=list(NAMES), help="recipes that runs alternate between")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parsed(parser, arguments)
    graphs = opened(chosen.recipes, chosen.names, chosen.reply)
    try:
        if chosen.profile:
            with profiled():
                anyio.run(play, graphs, requests(graphs, chosen, chosen.window), chosen.at_once)
            return
        found = report(chosen, anyio.run(measure, graphs, chosen))
    finally:
        for graph in graphs:
            graph.close()
    show(found, *table(found), json=chosen.json)


if __name__ == "__main__":
    main()
