"""What a sender saves that stops at the depth its translator reads: the demo pair, untrained translators of two depths.

A run of story-relay's graph over the cache edge: a reader's prefill, the translation, the answerer's prompt and one
token. CPU seconds of the whole process, so that other programs count little. No document is used twice.

    python benchmarks/sharer_depth.py [--tokens 270] [--layers 9] [--quick] [--profile] [--json]
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from measuring import Range, alternate, options, parsed, profiled, ratios, show
from texts import document, fresh_text

from cachegraph import Graph
from cachegraph.channels.fusers.files.card import ModelEnd
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.translator import new_translator
from cachegraph.engine.pool import leased
from cachegraph.engine.spec import ModelSpec
from cachegraph.training.networks.create import model_end


def build(models: Mapping[str, ModelSpec], fuser: Path) -> Graph:
    graph = Graph(name="sharer-depth", models=models, folder=fuser.parent)
    graph.add_input("document").add_input("question")
    graph.add_agent("reader", model="other", prompt="{{ document }}", generate={"max_new_tokens": 0})
    graph.add_agent(
        "answerer",
        model="small",
        prompt="{{ reader }}\n\n{{ question }}",
        generate={"max_new_tokens": 1, "ignore_eos": True},
    )
    graph.add_edge("reader", "answerer", "cache", fuser=f"./{fuser.name}", fallback="error")
    graph.output = "answerer"
    return graph


def save_translators(ends: Sequence[ModelEnd], folder: Path, layers: int) -> dict[str, Path]:
    """By title, an untrained translator of the shipped one's sizes: of all layers, and of the first ones."""
    receiver, sharer = ends
    depths = {f"all {sharer.geometry.layers} layers": sharer.geometry.layers, f"the first {layers}": layers}
    for depth in depths.values():
        save_fuser(new_translator(receiver, sharer, sharer_layers=range(depth)), folder / f"first-{depth}")
    return {title: folder / f"first-{depth}" for title, depth in depths.items()}


def cpu_seconds(graph: Graph, text: str) -> Callable[[], float]:
    def run() -> float:
        given = fresh_text(text)
        began = time.process_time()
        graph.run(document=given, question="Who may use this?")
        return time.process_time() - began

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, repeats=(15, 1), tokens=(270, 32))
    parser.add_argument("--receiver", default="smollm2-135m-instruct")
    parser.add_argument("--sharer", default="gemma-3-270m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--layers", type=int, default=9, help="the depth of the shallow translator")
    args = parsed(parser, arguments)
    models = {
        name: ModelSpec(source=source, dtype=args.dtype)
        for name, source in (("small", args.receiver), ("other", args.sharer))
    }
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        small, other = (opened.enter_context(leased(model, Path())).model for model in models.values())
        assert other.tokenizer is not None
        text = document(other.tokenizer, args.tokens)
        fusers = save_translators([model_end(small), model_end(other)], folder, args.layers)
        graphs = {title: opened.enter_context(build(models, fuser)) for title, fuser in fusers.items()}
        runs = {title: cpu_seconds(graph, text) for title, graph in graphs.items()}
        if args.profile:
            with profiled():
                alternate(runs, args.repeats)
            return
        report(alternate(runs, args.repeats), args.tokens, json=args.json)


def report(given: Mapping[str, Sequence[float]], tokens: int, *, json: bool) -> None:
    whole, few = given.values()
    part = ratios(few, whole)
    rows = [[title, f"{Range(values):.3f}"] for title, values in given.items()]
    found = {
        "title": f"a document of {tokens} tokens, CPU seconds a run",
        "cpu_s": {title: Range(values) for title, values in given.items()},
        "part": part,
    }
    show(found, ["the translator reads", "CPU seconds"], [*rows, ["part of the whole", f"{part:.2f}"]], json=json)


if __name__ == "__main__":
    main()
