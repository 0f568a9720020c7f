"""What a cache edge between two models costs: the receiver with what the sharer understood, against the receiver alone.

Both read the question; the receiver's cache is corrected by a fuser, and the same number of tokens is decoded. The
split says where the difference goes: the sharer's prefill, aligning and rotating, fusing, the receiver's own prefill,
decoding, and what is none of these.

    python benchmarks/fused_overhead.py [--prompts 64 256 1024] [--reply 33] [--sharer-weights int8] [--quick] [--json]
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from measuring import Range, alternate, options, parsed, profiled, ratios, show
from texts import document, fresh_text

from cachegraph import Graph
from cachegraph.engine.pool import leased
from cachegraph.engine.spec import ModelSpec
from cachegraph.graph.run.result import Result

PARTS = ("sharer prefill", "transfer", "fuse", "prefill", "decode", "rest")


class Reading(NamedTuple):
    wall: float
    parts: dict[str, float]


def build(receiver: str, sharer: str, sharer_weights: str | None, fuser: str, dtype: str, reply: int) -> Graph:
    """As recipes/science-duo.yaml, with replies of one length."""
    theirs = {"source": sharer, "dtype": dtype} | ({"weights": sharer_weights} if sharer_weights else {})
    graph = Graph(name="fused", models={"mine": {"source": receiver, "dtype": dtype}, "theirs": theirs})
    graph.add_input("question")
    graph.add_agent("expert", model="theirs", prompt="Question: {{ question }}\nWhat one needs to know:")
    _add_answerer(graph, "{{ expert }}\n{{ question }}", reply)
    graph.add_edge("expert", "answerer", "cache", fuser=fuser, fallback="error")
    graph.output = "answerer"
    return graph


def alone(receiver: str, dtype: str, reply: int) -> Graph:
    graph = Graph(name="alone", models={"mine": {"source": receiver, "dtype": dtype}})
    graph.add_input("question")
    _add_answerer(graph, "\n{{ question }}", reply)
    graph.output = "answerer"
    return graph


def _add_answerer(graph: Graph, prompt: str, reply: int) -> None:
    generate = {"max_new_tokens": reply, "ignore_eos": True}
    graph.add_agent("answerer", model="mine", system="Answer in one short sentence.", prompt=prompt, generate=generate)


def read(graph: Graph, question: str) -> Reading:
    began = perf_counter()
    result = graph.run(question=fresh_text(question))
    wall = perf_counter() - began
    return Reading(wall, _parts(result, wall))


def _parts(result: Result, wall: float) -> dict[str, float]:
    """The sharer reads in a turn of its own, or within the receiver's where the fuser wants it to read that prompt."""
    mine = result.agents["answerer"].timing
    theirs = result.agents["expert"].timing.prefill if "expert" in result.agents else 0.0
    for edge in result.edges.values():
        theirs += edge.seconds.get("sharer_prefill", 0.0)
    spent = {
        "sharer prefill": theirs,
        "transfer": mine.transfer,
        "fuse": mine.fuse,
        "prefill": mine.prefill,
        "decode": mine.decode,
    }
    return {**spent, "rest": wall - sum(spent.values())}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__ or "", reply=(33, 3))
    parser.add_argument("--receiver", default="smollm2-135m-instruct")
    parser.add_argument("--sharer", default="gemma-3-270m")
    parser.add_argument("--sharer-weights", choices=["int8"], help="what they are rounded to")
    parser.add_argument("--fuser", default="smollm2-135m-instruct--gemma-3-270m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 256, 1024], help="tokens of the question")
    chosen = parsed(parser, arguments)
    sizes = [16] if chosen.quick else chosen.prompts
    with ExitStack() as stack:
        graphs = {
            "alone": stack.enter_context(alone(chosen.receiver, chosen.dtype, chosen.reply)),
            "fused": stack.enter_context(
                build(chosen.receiver, chosen.sharer, chosen.sharer_weights, chosen.fuser, chosen.dtype, chosen.reply)
            ),
        }
        engine = stack.enter_context(leased(ModelSpec(source=chosen.receiver, dtype=chosen.dtype), Path()))
        assert engine.model.tokenizer is not None
        texts = {size: document(engine.model.tokenizer, size) for size in sizes}
        if chosen.profile:
            read(graphs["fused"], texts[sizes[-1]])
            with profiled():
                read(graphs["fused"], texts[sizes[-1]])
            return
        given = {
            size: alternate({name: partial(read, graph, text) for name, graph in graphs.items()}, chosen.repeats)
            for size, text in texts.items()
        }
    found = report(chosen, given)
    show(found, *table(found), json=chosen.json)


def report(chosen: Any, given: dict[int, dict[str, list[Reading]]]) -> dict[str, Any]:
    def split(readings: list[Reading]) -> dict[str, float]:
        return {part: median(each.parts[part] for each in readings) for part in PARTS}

    return {
        "title": (
            f"{chosen.receiver} corrected by {chosen.sharer} {chosen.sharer_weights or ''}".rstrip()
            + f", {chosen.dtype}, {chosen.reply} tokens decoded"
        ),
        "n": chosen.repeats,
        "prompts": {
            str(size): {
                "alone_s": Range([each.wall for each in both["alone"]]),
                "fused_s": Range([each.wall for each in both["fused"]]),
                "ratio": ratios([each.wall for each in both["fused"]], [each.wall for each in both["alone"]]),
                "alone_split_s": split(both["alone"]),
                "fused_split_s": split(both["fused"]),
            }
            for size, both in given.items()
        },
    }


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for size, of in found["prompts"].items():
        for name in ("alone", "fused"):
            split = of[f"{name}_split_s"]
            ratio = f"{of['ratio']:.2f}" if name == "fused" else ""
            rows.append(
                [f"{size} tokens, {name}", f"{of[f'{name}_s']:.2f}", ratio, *(f"{split[part]:.3f}" for part in PARTS)]
            )
    return ["question", "wall, s", "over alone", *PARTS], rows


if __name__ == "__main__":
    main()
