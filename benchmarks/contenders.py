"""Who decodes in benchmarks/decode.py: an engine of ours, transformers' own `generate`, llama.cpp."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import anyio
import torch
from llamacpp import LlamaCpp
from texts import document_ids
from transformers import AutoModelForCausalLM

from cachegraph.engine.engine import Engine
from cachegraph.engine.model.quiet_transformers import quiet_transformers
from cachegraph.engine.pool import lease
from cachegraph.engine.spec import GenerateSpec, ModelSpec, Weights

__all__ = ["Answers", "Ours", "Stream", "Theirs", "Transformers", "make_llama", "make_ours", "make_transformers"]

Ids = Sequence[int]


class Stream(NamedTuple):
    """One reply: how soon it began, how fast it went on."""

    first: float
    rate: float  # tokens a second, behind the first
    ids: list[int]


class Answers(NamedTuple):
    """Several replies to one document: all of it, and the decoding once all had begun."""

    wall: float
    rate: float


class Ours:
    """An engine, as agents use it."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts."""
        tokenizer = self.engine.model.tokenizer
        assert tokenizer is not None
        return [list(tokenizer.encode(text, special=False).ids) for text in texts]

    def document(self, tokens: int) -> list[int]:
        """A document of so many tokens."""
        tokenizer = self.engine.model.tokenizer
        assert tokenizer is not None
        return document_ids(tokenizer, tokens)

    def stream(self, ids: Ids, count: int) -> Stream:
        return anyio.run(self._stream, ids, count)

    async def _stream(self, ids: Ids, count: int) -> Stream:
        began = perf_counter()
        done = await self.engine.generate(ids, spec=_plain(count))
        assert done.cost.first_token is not None
        return _stream(began, done.cost.first_token, list(done.ids))

    def answers(self, document: Ids, questions: Sequence[Ids], count: int) -> Answers:
        return anyio.run(self._answers, document, questions, count)

    async def _answers(self, document: Ids, questions: Sequence[Ids], count: int) -> Answers:
        began, firsts = perf_counter(), []
        read = await self.engine.prefill(document)

        async def answer(question: Ids) -> None:
            done = await self.engine.generate(question, read.segments, _plain(count))
            firsts.append(done.cost.first_token or 0.0)

        async with anyio.create_task_group() as group:
            for question in questions:
                group.start_soon(answer, question)
        return _answers(began, max(firsts), len(questions), count)


class Transformers:
    """transformers' own `generate`, with the attention that it chooses itself."""

    def __init__(self, folder: Path, dtype: str):
        with quiet_transformers():
            network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        self.network: Any = network.eval()
        self.network.generation_config.eos_token_id = None  # it goes on to the last token
        self.network.generation_config.pad_token_id = 0

    def stream(self, ids: Ids, count: int) -> Stream:
        clock = _Clock()
        given = torch.tensor([list(ids)])
        began = perf_counter()
        out = self.network.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False, streamer=clock
        )
        return _stream(began, clock.times[1], out[0, len(ids) :].tolist())


class _Clock:
    """What `generate` tells of each token, the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.times.append(perf_counter())

    def end(self) -> None: ...


class Theirs:
    """llama.cpp, through its C interface."""

    def __init__(self, rival: LlamaCpp):
        self.rival = rival

    def stream(self, ids: Ids, count: int) -> Stream:
        began = perf_counter()
        reply, first = self.rival.generate(ids, count)
        return _stream(began, first, reply)

    def answers(self, document: Ids, questions: Sequence[Ids], count: int) -> Answers:
        began = perf_counter()
        _, first = self.rival.answers(document, questions, count)
        return _answers(began, first, len(questions), count)


def make_ours(model: str, weights: Weights | None, threads: int) -> Ours:
    """An engine of its own, for the rest of the process."""
    torch.set_num_threads(threads)
    spec = ModelSpec(source=model, dtype="bfloat16", device="cpu", weights=weights)
    return Ours(anyio.run(lease, spec, Path()).engine)


def make_transformers(folder: Path, dtype: str, threads: int) -> Transformers:
    torch.set_num_threads(threads)
    return Transformers(folder, dtype)


def make_llama(gguf: Path, threads: int, context: int, rows: int) -> Theirs:
    return Theirs(LlamaCpp(gguf, threads=threads, context=context, rows=rows))


def _plain(count: int) -> GenerateSpec:
    return GenerateSpec(max_new_tokens=count, ignore_eos=True)


def _stream(began: float, first: float, ids: list[int]) -> Stream:
    return Stream(first - began, (len(ids) - 1) / (perf_counter() - first), ids)


def _answers(began: float, first: float, rows: int, count: int) -> Answers:
    ended = perf_counter()
    return Answers(ended - began, rows * (count - 1) / (ended - first))
