"""Serves one model to any number of callers: rows join and leave the running batch between steps.

An engine has one thread outside all event loops, so it serves runs of several loops at once. It knows tokens and
caches, and nothing of prompts, agents or channels.
"""

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor

from cachegraph.common.abandoned_threads import run_or_abandon
from cachegraph.errors import ModelError

from .batching.admission import Load
from .batching.engine_loop import EngineLoop
from .batching.kv_budget import choose_budget
from .batching.loop_bridge import Mailbox
from .batching.request_state import RequestState
from .kv.cache import KV, LayerKV, RowCache
from .model.attention import OnLayer
from .model.hf_fallback import FallbackCache
from .model.load import LoadedModel
from .request import Generated, KVUse, Prefilled
from .sampling.grammar import Grammars
from .sampling.reply import ReplyState
from .sampling.sampler import Sampler
from .spec import GenerateSpec
from .text.tokenizer import TextDecoder

__all__ = ["FORKED", "Engine"]

FORKED = (
    "{} was loaded before os.fork(), and a forked process has no thread for it; load models in the new process alone, "
    "or start it by multiprocessing's 'spawn'"
)

T = TypeVar("T")


class Engine:
    """Serves one loaded model. Its thread starts with the first request and ends with `close`.

    `kv_memory` is how many bytes its caches may take; by default what the environment says, or a part of what is free.
    """

    def __init__(self, model: LoadedModel, kv_memory: int | None = None):
        self.model = model
        self._grammars = Grammars(model.tokenizer, model.info.eos_ids) if model.tokenizer is not None else None
        self.kv_memory = choose_budget(kv_memory, [str(device) for device in model.devices])
        self._loop: EngineLoop | None = None
        self._process = os.getpid()
        self._starting = threading.Lock()  # protects _loop, and that a stopped one gets no work

    # Requests, from any event loop

    async def prefill(
        self,
        ids: Sequence[int],
        past: Sequence[KV] = (),
        *,
        positions: Tensor | None = None,
        logits: Literal["none", "last", "all"] = "none",
        override: Sequence[LayerKV] | None = None,
        on_layer: OnLayer | None = None,
        layers: int | None = None,
        seen: Sequence[int] = (),
    ) -> Prefilled:
        """Read `ids` behind `past`, which is left as it is. Logits are computed only where asked for.

        `positions`: (ids,) int64; None: consecutive. `override`: by layer the keys and values to use in place of
        those of `ids`, (1, kv_heads, ids, head_dim). `logits`: (1, vocab) of the last token, or (ids, vocab) of all.
        `seen` are the tokens of `past`, for models that may have to read a longer row once more.

        `on_layer` is called with each layer's entries, including those of `past`, in the engine's thread, before the
        next layer is computed; again if the step has to be repeated. With `layers`, only that many of the model's first
        layers are computed: the row has entries of those alone, and `past` needs no others. Raises ModelError if the
        model has fewer layers, or if `layers` and logits are both asked for.
        """
        all_layers = self.model.info.layers
        if layers is not None and not (0 < layers <= all_layers and logits == "none"):
            raise ModelError(
                f"{self.model.name!r} has {all_layers} layers, and logits behind the last alone; ask for 1 to "
                f"{all_layers} layers and no logits, not for {layers} and {logits!r}"
            )
        layers = None if layers == all_layers else layers
        cache = self._cache(past)
        request = RequestState(cache, list(ids), Mailbox(), logits, positions, override, on_layer, layers, before=seen)
        await self._serve(request)
        return self._prefilled(request, past)

    async def prefill_many(
        self,
        rows: Sequence[Sequence[int]],
        past: Sequence[KV] = (),
        *,
        positions: Sequence[Tensor] | None = None,
        logits: Literal["none", "last", "all"] = "none",
        seen: Sequence[int] = (),
    ) -> list[Prefilled]:
        """Read several rows, none empty, behind the same `past`. They arrive together, so they share their steps.

        `positions`: by row, (ids,) int64. `logits` and `seen` as for `prefill`.
        """
        at: Sequence[Tensor | None] = positions or [None] * len(rows)
        requests = [
            RequestState(self._cache(past), list(ids), Mailbox(), logits, where, before=seen)
            for ids, where in zip(rows, at, strict=True)
        ]
        self._submit(requests)
        try:
            for request in requests:
                await self._finished(request)
        finally:
            for request in requests:
                request.cancelled = True
                request.mailbox.close()
        return [self._prefilled(request, past) for request in requests]

    async def generate(
        self,
        ids: Sequence[int],
        past: Sequence[KV] = (),
        spec: GenerateSpec | None = None,
        *,
        positions: Tensor | None = None,
        on_text: Callable[[str], None] | None = None,
        seen: Sequence[int] = (),
    ) -> Generated:
        """Read `ids` (at least one) behind `past`, then decode. `positions`: (ids,) int64; None: consecutive. `seen`:
        tokens of `past`, as for `prefill`, and for the penalty. Raises ModelError.
        """
        spec = spec or GenerateSpec()
        if spec.max_new_tokens == 0:
            done = await self.prefill(ids, past, positions=positions)
            return Generated([], "", "length", done.segments, done.cost)
        reply = await self.reply(spec, [*seen, *ids])
        request = RequestState(
            self._cache(past),
            list(ids),
            Mailbox(),
            "last",
            positions,
            before=seen,
            reply=reply,
            streams=on_text is not None,
        )
        await self._serve(request, on_text)
        finish = reply.finish or "length"
        return Generated(reply.ids, reply.text, finish, self._segments(request), request.cost, reply.sampler.whole)

    async def reply(self, spec: GenerateSpec, seen: Sequence[int] = ()) -> ReplyState:
        """A reply before its first token. `seen`: as for `sampler`."""
        sampler, tokenizer = await self.sampler(spec, seen), self.model.tokenizer
        decoder = TextDecoder(tokenizer.decode, spec.stop) if tokenizer is not None else None
        return ReplyState(sampler, decoder, self.model.info.eos_ids)

    async def sampler(self, spec: GenerateSpec, seen: Sequence[int] = ()) -> Sampler:
        """A sampler for one reply. The first with a json_schema takes seconds, off the event loop.

        Raises ModelError for a json_schema if the model has no tokenizer.
        """
        if spec.json_schema is None:
            return Sampler(spec, self.model.info.eos_ids, seen)
        if self._grammars is None:
            raise ModelError(f"{self.model.name!r} has no tokenizer, so its replies can't be held to a json_schema")
        start = self._grammars.start
        grammar = await run_or_abandon(partial(start, spec.json_schema))
        return Sampler(spec, self.model.info.eos_ids, seen, grammar)

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function in the engine's thread, between two steps."""
        mailbox: Mailbox[tuple[T | None, BaseException | None]] = Mailbox()

        def run() -> None:
            try:
                with torch.inference_mode():
                    mailbox.post((function(), None))
            except BaseException as error:  # raised in the caller
                mailbox.post((None, error))

        self._submit(run)
        async for value, error in mailbox:
            if error is not None:
                raise error
            return value  # type: ignore[return-value]
        raise AssertionError

    def kv_use(self) -> KVUse:
        """How much of the KV budget is in use now."""
        if self._is_forked:
            return KVUse(self.kv_memory)
        with self._starting:
            loop = self._loop
        if loop is None:
            return KVUse(self.kv_memory)
        return KVUse(self.kv_memory, loop.budget.used, loop.prefixes.nbytes, loop.budget.peak)

    def load(self) -> Load:
        """How many requests are running and waiting now."""
        loop = self._loop
        return Load() if self._is_forked or loop is None else loop.load

    async def forget(self) -> None:
        """Empty the prefix cache."""
        loop = self._loop
        if loop is not None:
            await self.call(loop.prefixes.clear)

    def close(self) -> None:
        """End the thread. Requests under way fail; later ones start a new one."""
        if self._is_forked:  # its thread is another process's
            return
        with self._starting:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.stop()

    # In the event loops of those who ask

    def _cache(self, past: Sequence[KV]) -> RowCache:
        if self.model.why_no_cache is None:
            return RowCache(past)
        assert not past
        return FallbackCache()

    def _segments(self, request: RequestState) -> tuple[KV, ...]:
        return request.cache.freeze() if self.model.why_no_cache is None else ()

    async def _serve(self, request: RequestState, on_text: Callable[[str], None] | None = None) -> None:
        """Return when the request is done; if this is cancelled, the request leaves the batch before the next step."""
        if not request.pending:
            return
        self._submit([request])
        try:
            await self._finished(request, on_text)
        finally:
            request.cancelled = True
            request.mailbox.close()

    async def _finished(self, request: RequestState, on_text: Callable[[str], None] | None = None) -> None:
        async for item in request.mailbox:
            if isinstance(item, str):
                if on_text is not None:
                    on_text(item)
                continue
            if request.error is not None:
                raise request.error
            return

    def _prefilled(self, request: RequestState, past: Sequence[KV]) -> Prefilled:
        joined = torch.cat(request.logits)[-request.asked :] if request.logits else None
        segments = self._segments(request)
        own = len(segments) - sum(1 for kv in past if len(kv))
        return Prefilled(segments, max(own, 0), joined, request.cost)

    @property
    def _is_forked(self) -> bool:
        """Whether this process is a fork of the one with the model: here no thread would answer, or free a lock."""
        return os.getpid() != self._process

    def _submit(self, work: "list[RequestState] | Callable[[], None]") -> None:
        if self._is_forked:
            raise ModelError(FORKED.format(f"the model {self.model.name!r}"))
        with self._starting:
            if self._loop is None or not self._loop.submit(work):
                self._loop = EngineLoop(self.model, self.kv_memory)
                self._loop.submit(work)
