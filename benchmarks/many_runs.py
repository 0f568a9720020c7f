"""Many concurrent runs of a graph of two models, against the same runs one after another; over text and over cache.

python benchmarks/many_runs.py [--recipe recipes/science-duo.yaml] [--runs 32] [--quick] [--profile] [--json]
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from measuring import Range, alternate, options, parsed, profiled, ratios, show

from cachegraph import Graph

CHANNELS = ("text", "cache")
RECIPE = Path(__file__).parents[1] / "recipes" / "science-duo.yaml"
THINGS = (
    "the sky blue", "the sea salty", "grass green", "ice slippery", "the moon bright", "metal cold to the touch",
    "blood red", "snow white", "the night dark", "gold heavy", "glass transparent", "rubber elastic", "sugar sweet",
    "lemons sour", "fire hot", "the desert dry",
)  # fmt: skip
ASKING = ("Why is {}?", "Is it always so that {} is what we see, and why is {}?")


class Runs(NamedTuple):
    seconds: float
    texts: list[str | None]


def questions(count: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        thing = THINGS[number % len(THINGS)]
        rows.append({"question": ASKING[number // len(THINGS) % len(ASKING)].format(thing, thing)})
    return rows


def together(graph: Graph, rows: list[dict[str, Any]]) -> Runs:
    began = perf_counter()
    results = graph.map(rows, max_concurrent=len(rows))
    return Runs(perf_counter() - began, [result.text for result in results])


def in_turn(graph: Graph, rows: list[dict[str, Any]]) -> Runs:
    began = perf_counter()
    results = [graph.run(row) for row in rows]
    return Runs(perf_counter() - began, [result.text for result in results])


def with_dtype(graph: Graph, dtype: str) -> Graph:
    """The same graph, every model in this dtype."""
    spec = graph.spec.model_dump(by_alias=True, exclude_unset=True)
    models = {
        name: {**(model if isinstance(model, dict) else {"source": model}), "dtype": dtype}
        for name, model in spec["models"].items()
    }
    return graph.with_spec(type(graph.spec).model_validate({**spec, "models": models}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__ or "", runs=(32, 2))
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="with one input, `question`")
    parser.add_argument("--dtype", default="bfloat16")
    chosen = parsed(parser, arguments)
    rows = questions(chosen.runs)
    with ExitStack() as stack:
        whole = stack.enter_context(with_dtype(Graph.from_yaml(chosen.recipe, allow_paths=True), chosen.dtype))
        graphs = {channel: whole.with_channels(channel) for channel in CHANNELS}
        if chosen.profile:
            together(graphs["cache"], rows)
            with profiled():
                together(graphs["cache"], rows)
            return
        contenders: dict[str, Callable[[], Runs]] = {}
        for channel, graph in graphs.items():
            contenders[f"{channel}, one after another"] = lambda graph=graph: in_turn(graph, rows)
            contenders[f"{channel}, together"] = lambda graph=graph: together(graph, rows)
        given = alternate(contenders, chosen.repeats)
    found = report(chosen.recipe.stem, chosen.dtype, chosen.runs, chosen.repeats, given)
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


def report(recipe: str, dtype: str, runs: int, repeats: int, given: dict[str, list[Runs]]) -> dict[str, Any]:
    seconds = {name: [each.seconds for each in values] for name, values in given.items()}
    both = {channel: (f"{channel}, one after another", f"{channel}, together") for channel in CHANNELS}
    return {
        "title": f"{runs} runs of {recipe}, {dtype}",
        "n": repeats,
        "seconds": {name: Range(values) for name, values in seconds.items()},
        "faster": {channel: ratios(seconds[one], seconds[many]) for channel, (one, many) in both.items()},
        "same_replies": {
            channel: sum(a == b for a, b in zip(given[one][-1].texts, given[many][-1].texts, strict=True))
            for channel, (one, many) in both.items()
        },
    }


if __name__ == "__main__":
    main()
