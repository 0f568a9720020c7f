"""Greedy decoding in one stream, and the answers of several to one document; beside transformers and llama.cpp.

All have the same weights and number of threads, decode the same number of tokens behind the same prompt, and take
turns, each in a process of its own, so that one that crashes is left out; ours in bfloat16, and with weights rounded to
int8. A step reads every weight once, so no stream is faster than the memory's bandwidth over the bytes of the weights;
the bandwidth is measured in the same rounds.
llama.cpp takes part where llama-cpp-python is installed (benchmarks/requirements.txt), with GGUF files written from the
same folder.

    python benchmarks/decode.py [--model NAME] [--gguf-dtypes bf16 f16 q8_0] [--quick] [--profile] [--json]
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from contenders import Answers, make_ours
from measuring import Range, alternate, options, parsed, profiled, progress, ratios, show
from safetensors import safe_open
from separate import Crashed, Separate
from texts import QUESTIONS, fresh
from to_gguf import DTYPES, write_gguf

from cachegraph.engine.catalogue import ensure
from cachegraph.engine.cpu.huge_pages import LargePages
from cachegraph.engine.spec import ModelSpec


def bandwidth(buffer: torch.Tensor) -> float:
    """Bytes a second that all threads together read from memory: the fastest of three kinds of reading."""
    rows = buffer.view(-1, 4096)
    column = torch.ones(4096)
    fastest = 0.0
    reads: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: buffer.sum(),
        lambda: torch.dot(buffer, buffer),
        lambda: rows @ column,
    )
    for read in reads:
        began = perf_counter()
        read()
        fastest = max(fastest, buffer.nbytes / (perf_counter() - began))
    return fastest


def weight_count(folder: Path) -> int:
    """How many numbers one step reads: everything but an embedding that is not the output head, too."""
    numbers = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            sizes = {name: torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys()}  # noqa: SIM118
        tied = "lm_head.weight" not in sizes
        numbers += sum(size for name, size in sizes.items() if tied or not name.endswith("embed_tokens.weight"))
    return numbers


def bytes_each(name: str) -> float:
    """Of a contender's weights; scales count with those of llama.cpp's blocks of 32, ours are one an output."""
    return {"cachegraph int8": 1, "llama.cpp q8_0": 34 / 32}.get(name, 2)


@contextmanager
def contenders(chosen: Namespace) -> Iterator[dict[str, Separate]]:
    """Each in a process of its own: llama.cpp dies with SIGSEGV on some CPUs."""
    folder, threads = ensure(ModelSpec(source=chosen.model)).folder, chosen.threads
    found: dict[str, Separate] = {}
    with ExitStack() as stack:

        def start(name: str, make: str, *arguments: object) -> None:
            try:
                found[name] = contender = Separate(f"contenders:{make}", *arguments)
            except Crashed as error:
                progress(f"{name}: {error}; it is left out")
            else:
                stack.callback(contender.close)

        start("cachegraph", "make_ours", chosen.model, None, threads)
        start("cachegraph int8", "make_ours", chosen.model, "int8", threads)
        start("transformers", "make_transformers", folder, "bfloat16", threads)
        if find_spec("llama_cpp") is None:
            progress("llama-cpp-python is not installed (benchmarks/requirements.txt): without llama.cpp")
            chosen.gguf_dtypes = []
        room = Path(stack.enter_context(TemporaryDirectory()))
        context = max(chosen.prompt, chosen.document) + chosen.streams * (chosen.tokens + 64) + 256
        for dtype in chosen.gguf_dtypes:
            gguf = write_gguf(folder, room / f"{dtype}.gguf", dtype)
            start(f"llama.cpp {dtype}", "make_llama", gguf, threads, context, chosen.streams)
        yield found


def measure(chosen: Namespace, by_name: dict[str, Separate]) -> dict[str, Any]:
    ours = by_name["cachegraph"]
    prompt, text = (ours.call("document", size) for size in (chosen.prompt, chosen.document))
    asked = ours.call("ids_of", [QUESTIONS[row % len(QUESTIONS)] for row in range(chosen.streams)])
    numbers = chosen.buffer * 1_000_000 // 4 // 4096 * 4096
    buffer = LargePages().empty(numbers, dtype=torch.float32).fill_(1)

    def stream(one: Separate) -> Any:
        return one.call("stream", fresh(prompt), chosen.tokens)

    def answers(one: Separate) -> Any:
        return one.call("answers", fresh(text), asked, chosen.tokens)

    def reply(one: Separate) -> Any:
        return one.call("stream", prompt, chosen.tokens).ids

    streams: dict[str, Callable[[], Any]] = {name: partial(stream, one) for name, one in by_name.items()}
    given = alternate({**streams, "memory": lambda: bandwidth(buffer)}, chosen.repeats)
    left = {name: one for name, one in by_name.items() if name in given}
    answering = {name: partial(answers, one) for name, one in left.items() if "answers" in one.methods}
    together = alternate(answering, chosen.repeats)
    replies = alternate({name: partial(reply, one) for name, one in left.items()}, 1, warm_up=0)
    given = {name: values for name, values in given.items() if name in replies or name == "memory"}
    together = {name: values for name, values in together.items() if name in replies}
    weights = weight_count(ensure(ModelSpec(source=chosen.model)).folder)
    return report(chosen, weights, given, together, {name: each for name, (each,) in replies.items()})


def report(
    chosen: Namespace,
    weights: int,
    given: dict[str, list[Any]],
    together: dict[str, list[Answers]],
    replies: dict[str, list[int]],
) -> dict[str, Any]:
    memory = given.pop("memory")
    sizes = {name: weights * bytes_each(name) for name in given}
    rates = {name: [each.rate for each in streams] for name, streams in given.items()}
    firsts = {name: [each.first for each in streams] for name, streams in given.items()}
    walls = {name: [each.wall for each in answers] for name, answers in together.items()}
    decoding = {name: [each.rate for each in answers] for name, answers in together.items()}
    return {
        "title": (
            f"{chosen.model}: a prompt of {chosen.prompt} tokens, {chosen.tokens} decoded; and "
            f"{chosen.streams} answers of {chosen.tokens} tokens to one document of {chosen.document}"
        ),
        "n": chosen.repeats,
        "weights_mb": {name: round(size / 1e6) for name, size in sizes.items()},
        "bandwidth_gb_s": Range([each / 1e9 for each in memory]),
        "one_stream_tokens_s": {name: Range(values) for name, values in rates.items()},
        "one_stream_ours_over": {name: ratios(rates["cachegraph"], values) for name, values in rates.items()},
        "one_stream_int8_over": {name: ratios(rates["cachegraph int8"], values) for name, values in rates.items()},
        "of_the_bound": {
            name: Range([rate * sizes[name] / read for rate, read in zip(values, memory, strict=True)])
            for name, values in rates.items()
        },
        "first_token_s": {name: Range(values) for name, values in firsts.items()},
        "first_token_ours_sooner": {name: ratios(values, firsts["cachegraph"]) for name, values in firsts.items()},
        "same_tokens_as_ours": {name: _agree(ids, replies["cachegraph"]) for name, ids in replies.items()},
        "answers_wall_s": {name: Range(values) for name, values in walls.items()},
        "answers_ours_faster": {name: ratios(values, walls["cachegraph"]) for name, values in walls.items()},
        "answers_int8_faster": {name: ratios(values, walls["cachegraph int8"]) for name, values in walls.items()},
        "answers_tokens_s": {name: Range(values) for name, values in decoding.items()},
    }


def _agree(ids: list[int], ours: list[int]) -> int:
    """How many tokens two greedy replies begin with alike: another rounding decides a tie differently."""
    return next((at for at, (a, b) in enumerate(zip(ids, ours, strict=True)) if a != b), len(ids))


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    names = list(found["one_stream_tokens_s"])
    none = "-"

    def row(title: str, key: str, form: str) -> list[str]:
        return [title, *(f"{found[key][name]:{form}}" if name in found[key] else none for name in names)]

    memory = found["bandwidth_gb_s"]
    return ["", *names], [
        row("one stream, tokens/s", "one_stream_tokens_s", ".1f"),
        row("  cachegraph over it", "one_stream_ours_over", ".2f"),
        row("  cachegraph int8 over it", "one_stream_int8_over", ".2f"),
        row("  MB of weights", "weights_mb", "d"),
        row(f"  of the bound ({memory['median']:.1f} GB/s over them)", "of_the_bound", ".0%"),
        row("  its first token, s", "first_token_s", ".3f"),
        row("  over cachegraph's", "first_token_ours_sooner", ".2f"),
        row("  tokens alike with cachegraph", "same_tokens_as_ours", "d"),
        row("answers to a document, all, s", "answers_wall_s", ".2f"),
        row("  its time over cachegraph's", "answers_ours_faster", ".2f"),
        row("  its time over cachegraph int8's", "answers_int8_faster", ".2f"),
        row("  decoding, tokens/s of all", "answers_tokens_s", ".1f"),
    ]


def profile(chosen: Namespace) -> None:
    """Where our own time goes: in this process."""
    ours = make_ours(chosen.model, None, chosen.threads)
    ids = ours.document(chosen.prompt)
    ours.stream(ids, chosen.tokens)
    with profiled():
        ours.stream(ids, chosen.tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(
        __doc__ or "", tokens=(128, 4), prompt=(64, 8), document=(1000, 40), streams=(8, 2), buffer=(1000, 20)
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a catalogue name or a folder")
    parser.add_argument("--gguf-dtypes", nargs="*", choices=DTYPES, default=list(DTYPES))
    chosen = parsed(parser, arguments)
    if chosen.profile:
        profile(chosen)
        return
    with contenders(chosen) as by_name:
        found = measure(chosen, by_name)
    show(found, *table(found), json=chosen.json)


if __name__ == "__main__":
    main()
