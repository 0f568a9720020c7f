"""One document, four answerers: cache edges against text edges that hand the document over.

The same graph runs over both channels in alternation, in one process, and medians and ratios are printed. The document
is the beginning of this repository's LICENSE, cut at a number of tokens.

All answerers have the reader's system text, so that prefix reuse shares most of the document over text edges too.
With --own-systems each has its own: nothing but a graft shares the document then. --no-reuse turns prefix reuse off.

    python benchmarks/document_relay.py [--own-systems | --no-reuse] [--tokens 1000] [--answerers 4] [--json]
"""

import argparse
import json
import os
import statistics
import threading
import time
import weakref
from collections.abc import Sequence
from functools import partial

import torch
from measuring import Range, alternate, machine, ratios
from texts import QUESTIONS, document, fresh_text

from cachegraph import Graph
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV, RowCache
from cachegraph.graph.run.result import Result

MODEL = "smollm2-135m-instruct"


def build(answerers: int, reply: int, own_systems: bool) -> Graph:
    """A reader, and answerers that ask different questions about what it has read."""
    graph = Graph(name="relay")
    graph.add_input("document")
    system = "Answer with a few words from the text."
    graph.add_agent("reader", model=MODEL, system=system, prompt="{{ document }}", generate={"max_new_tokens": 0})
    names = [f"answerer_{index}" for index in range(answerers)]
    for index, name in enumerate(names):
        graph.add_agent(
            name,
            model=MODEL,
            system=f"You are reader {index + 1}. {system}" if own_systems else system,
            prompt="{{ reader }}\n\n" + QUESTIONS[index % len(QUESTIONS)],
            generate={"max_new_tokens": reply, "ignore_eos": True},
        )
        graph.add_edge("reader", name, "cache", fallback="error")
    collector = "\n".join("{{ " + name + " }}" for name in names)
    graph.add_agent("answers", model=MODEL, prompt=collector, generate={"max_new_tokens": 0})
    for name in names:
        graph.add_edge(name, "answers")
    graph.output = "answers"
    return graph


def engine_of(graph: Graph) -> Engine:
    graph.open()
    engine = graph._agents_now().agents["reader"].peer().engine
    assert isinstance(engine, Engine)
    return engine


def measure(graph: Graph, text: str) -> dict[str, float]:
    began = time.perf_counter()
    result = graph.run(document=fresh_text(text))
    wall = time.perf_counter() - began
    answerers = [agent for name, agent in result.agents.items() if name.startswith("answerer")]
    first = [agent.timing.first_token or 0.0 for agent in answerers]
    return {
        "wall": wall,
        "first_of_run": min((agent.started or 0.0) + own for agent, own in zip(answerers, first, strict=True)),
        "first_mean": statistics.fmean(first),
        "first_best": min(first),
        "prefilled": float(tokens_of(result)),
    }


def tokens_of(result: Result) -> int:
    return sum(agent.tokens.prefilled for agent in result.agents.values())


def peak_kv_bytes(graph: Graph, text: str) -> int:
    """The largest sum of distinct KV storages that rows hold at any time of one run, sampled every few milliseconds."""
    rows: weakref.WeakSet[RowCache] = weakref.WeakSet()
    make = RowCache.__init__

    def make_and_note(row: RowCache, segments: Sequence[KV] = ()) -> None:
        make(row, segments)
        rows.add(row)

    peak, stop = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, kv_bytes(list(rows)))

    RowCache.__init__ = make_and_note  # type: ignore[method-assign, assignment]
    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        graph.run(document=text)
    finally:
        stop.set()
        sampler.join()
        RowCache.__init__ = make  # type: ignore[method-assign]
    return peak


def kv_bytes(rows: list[RowCache]) -> int:
    layers = [layer for row in rows for kv in row.segments for layer in kv.layers]
    layers += [layer for row in rows for layer in list(row._tail)]
    storages = (tensor.untyped_storage() for layer in layers for tensor in layer)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--answerers", type=int, default=4)
    parser.add_argument("--reply", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    sharing = parser.add_mutually_exclusive_group()
    sharing.add_argument("--own-systems", action="store_true", help="a system text of its own for each answerer")
    sharing.add_argument("--no-reuse", action="store_true", help="as engines without prefix reuse read")
    options = parser.parse_args()
    if options.no_reuse:
        os.environ["CACHEGRAPH_PREFIX_REUSE"] = "0"

    cache = build(options.answerers, options.reply, options.own_systems)
    tokenizer = engine_of(cache).model.tokenizer
    assert tokenizer is not None
    text = document(tokenizer, options.tokens)
    graphs = {"text": cache.with_channels("text"), "cache": cache}
    rounds = alternate({name: partial(measure, graph, text) for name, graph in graphs.items()}, options.repeats)
    model = engine_of(cache).model
    report: dict[str, object] = {
        "model": model.name,
        "dtype": str(model.dtype),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "machine": machine(),
        **vars(options),
    }
    for key in ("wall", "first_mean", "first_best", "first_of_run", "prefilled"):
        values = {name: [each[key] for each in rounds[name]] for name in graphs}
        medians = {name: Range(each)["median"] for name, each in values.items()}
        report[key] = {**medians, "ratio": ratios(values["text"], values["cache"])}
    report["peak_kv_bytes"] = {name: peak_kv_bytes(graph, text) for name, graph in graphs.items()}
    cache.close()
    print(json.dumps(report, indent=2) if options.json else as_text(report))


def as_text(report: dict[str, object]) -> str:
    titles = {
        "wall": "wall time, s",
        "first_mean": "an answerer's first token after its turn began, mean, s",
        "first_best": "the same, best answerer, s",
        "first_of_run": "first answer token after the run began, s",
        "prefilled": "tokens prefilled",
    }
    lines = [
        (
            "document-relay: {tokens} tokens, {answerers} answerers of {reply} tokens, {model}, {dtype}, {device}, "
            "{threads} threads; medians of {repeats} alternating runs"
        ).format(**report),
        f"{'':58} {'text':>9} {'cache':>9}  text/cache (range)",
    ]
    for key, title in titles.items():
        row = report[key]
        assert isinstance(row, dict)
        lines.append(f"{title:58} {row['text']:9.2f} {row['cache']:9.2f}  {row['ratio']:.2f}")
    kv = report["peak_kv_bytes"]
    assert isinstance(kv, dict)
    text, cache = kv["text"] / 1e6, kv["cache"] / 1e6
    ratio = f"{text / cache:.2f}x" if cache else "-"  # of a tiny model no sample may have been in time
    lines.append(f"{'peak KV memory, MB':58} {text:9.1f} {cache:9.1f}  {ratio}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
