"""llama.cpp at its best, through its C interface: rows of one batch, a document that all rows share, greedy replies."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

__all__ = ["LlamaCpp", "Token"]

BATCH = 512


class Token(NamedTuple):
    """One token of a batch."""

    id: int
    position: int
    rows: Sequence[int]
    wanted: bool = False  # whether its row goes on with what follows it


class LlamaCpp:
    """A GGUF file in memory. Raises ImportError where llama-cpp-python is not installed."""

    def __init__(self, gguf: Path, *, threads: int, context: int, rows: int):
        import llama_cpp

        self._lib: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp can't read {str(gguf)!r}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = context, BATCH, BATCH, rows + 1
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True  # rows that read on from one document hold it once
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, rows + 1)

    def close(self) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def generate(self, ids: Sequence[int], count: int) -> tuple[list[int], float]:
        """The greedy reply, and when its first token was there."""
        self._lib.llama_memory_clear(self._memory, False)
        (token,) = self._read([Token(each, at, [0], at == len(ids) - 1) for at, each in enumerate(ids)])
        first, reply = perf_counter(), [token]
        for at in range(len(ids), len(ids) + count - 1):
            (token,) = self._read([Token(token, at, [0], True)])
            reply.append(token)
        return reply, first

    def answers(
        self, document: Sequence[int], questions: Sequence[Sequence[int]], count: int
    ) -> tuple[list[list[int]], float]:
        """Greedy replies to all questions about a document that is read once, and when all first tokens were there."""
        self._lib.llama_memory_clear(self._memory, False)
        rows = range(len(questions))
        self._read([Token(each, at, rows) for at, each in enumerate(document)])
        start = len(document)
        asked = [
            Token(each, start + at, [row], at == len(ids) - 1)
            for row, ids in enumerate(questions)
            for at, each in enumerate(ids)
        ]
        tokens, replies = self._read(asked), []
        first, ends = perf_counter(), [start + len(ids) for ids in questions]
        replies = [[token] for token in tokens]
        for step in range(count - 1):
            tokens = self._read([Token(replies[row][-1], ends[row] + step, [row], True) for row in rows])
            for row, token in enumerate(tokens):
                replies[row].append(token)
        return replies, first

    def _read(self, tokens: Sequence[Token]) -> list[int]:
        """Compute them; the likeliest token behind each that is wanted."""
        found: list[int] = []
        for start in range(0, len(tokens), BATCH):
            found += self._decode(tokens[start : start + BATCH])
        return found

    def _decode(self, tokens: Sequence[Token]) -> list[int]:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token.id, token.position, token.wanted
            batch.n_seq_id[index] = len(token.rows)
            for place, row in enumerate(token.rows):
                batch.seq_id[index][place] = row
        if self._lib.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not decode a batch")
        return [self._likeliest(index) for index, token in enumerate(tokens) if token.wanted]

    def _likeliest(self, index: int) -> int:
        logits = self._lib.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocabulary,)).argmax())
