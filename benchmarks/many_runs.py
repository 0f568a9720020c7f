"""Many concurrent runs of a graph of two models, against the same runs one after another; over text and over cache.

Replies go on to their full length, so that all rounds do the same work. No question is asked twice, but where replies
are compared, so that no prompt is known from before. Progress goes to stderr, with the time that is left. `--quick`
takes two runs and one round.

    python benchmarks/many_runs.py [--recipe recipes/science-duo.yaml] [--runs 32] [--quick] [--profile] [--json]
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from measuring import Range, alternate, options, parsed, profiled, progress, ratios, show
from texts import fresh_text

from cachegraph import Graph
from cachegraph.channels.spec import Channel

Rows = list[dict[str, Any]]

CHANNELS: tuple[Channel, ...] = ("text", "cache")
RECIPE = Path(__file__).parents[1] / "recipes" / "science-duo.yaml"
THINGS = (
    "the sky blue", "the sea salty", "grass green", "ice slippery", "the moon bright", "metal cold to the touch",
    "blood red", "snow white", "the night dark", "gold heavy", "glass transparent", "rubber elastic", "sugar sweet",
    "lemons sour", "fire hot", "the desert dry",
)  # fmt: skip
ASKING = ("Why is {}?", "Is it always so that {} is what we see, and why is {}?")


Run = Callable[[Graph, Rows], list[str | None]]


def questions(count: int) -> Rows:
    rows = []
    for number in range(count):
        thing = THINGS[number % len(THINGS)]
        rows.append({"question": ASKING[number // len(THINGS) % len(ASKING)].format(thing, thing)})
    return rows


def together(graph: Graph, rows: Rows) -> list[str | None]:
    return [result.text for result in graph.map(rows, max_concurrent=len(rows))]


def in_turn(graph: Graph, rows: Rows) -> list[str | None]:
    return [graph.run(row).text for row in rows]


HOW: dict[str, Run] = {"one after another": in_turn, "together": together}


def timed(run: Run, graph: Graph, rows: Rows) -> float:
    new = [{"question": fresh_text(row["question"])} for row in rows]
    began = perf_counter()
    run(graph, new)
    return perf_counter() - began


def as_measured(graph: Graph, dtype: str) -> Graph:
    """The same graph, every model in this dtype, every reply of its full length."""
    spec = graph.spec.model_dump(by_alias=True, exclude_unset=True)
    models = {
        name: {**(model if isinstance(model, dict) else {"source": model}), "dtype": dtype}
        for name, model in spec["models"].items()
    }
    agents = {
        name: {**agent, "generate": {**agent.get("generate", {}), "ignore_eos": True}}
        for name, agent in spec["agents"].items()
    }
    return graph.with_spec(type(graph.spec).model_validate({**spec, "models": models, "agents": agents}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__ or "", runs=(32, 2))
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="with one input, `question`")
    parser.add_argument("--dtype", default="bfloat16")
    chosen = parsed(parser, arguments)
    rows = questions(chosen.runs)
    with ExitStack() as stack:
        whole = stack.enter_context(as_measured(Graph.from_yaml(chosen.recipe, allow_paths=True), chosen.dtype))
        graphs = {channel: whole.with_channels(channel) for channel in CHANNELS}
        if chosen.profile:
            together(graphs["cache"], rows)
            with profiled():
                together(graphs["cache"], rows)
            return
        contenders: dict[str, Callable[[], float]] = {}
        for channel, graph in graphs.items():
            for how, run in HOW.items():
                contenders[f"{channel}, {how}"] = partial(timed, run, graph, rows)
        given = alternate(contenders, chosen.repeats)
        progress("comparing replies: all runs once more, one after another and together")
        same = {
            channel: sum(a == b for a, b in zip(in_turn(graph, rows), together(graph, rows), strict=True))
            for channel, graph in graphs.items()
        }
    found = {
        "title": f"{chosen.runs} runs of {chosen.recipe.stem}, {chosen.dtype}",
        "n": chosen.repeats,
        "seconds": {name: Range(values) for name, values in given.items()},
        "faster": {channel: ratios(*(given[f"{channel}, {how}"] for how in HOW)) for channel in CHANNELS},
        "same_replies": same,
    }
    table = [
        [
            channel,
            f"{found['seconds'][f'{channel}, one after another']:.2f}",
            f"{found['seconds'][f'{channel}, together']:.2f}",
            f"{found['faster'][channel]:.2f}",
            f"{found['same_replies'][channel]} of {chosen.runs}",
        ]
        for channel in CHANNELS
    ]
    head = ["edges", "one after another, s", "together, s", "faster", "same replies"]
    show(found, head, table, json=chosen.json)


if __name__ == "__main__":
    main()
