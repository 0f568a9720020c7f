"""One model on one device, serving whoever asks: rows join and leave the running batch between steps.

An engine has one thread, off every event loop, so it serves runs of several loops at once. It knows tokens and caches;
it knows nothing of prompts, agents or channels.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import anyio.to_thread
import torch
from torch import Tensor

from cachegraph.errors import ModelError

from .grammar import Grammars
from .kv import KV, LayerKV, RowCache
from .load import LoadedModel
from .mailbox import Mailbox
from .native import NativeCache
from .request import Generated, Prefilled
from .sampling import Sampler
from .spec import GenerateSpec
from .tokens import TextDecoder
from .worker import Job, Worker

__all__ = ["Engine"]

T = TypeVar("T")


class Engine:
    """Serves one loaded model. Its thread starts with the first request and ends with `close`."""

    def __init__(self, model: LoadedModel):
        self.model = model
        self._grammars = Grammars(model.tokenizer, model.info.eos_ids) if model.tokenizer is not None else None
        self._worker: Worker | None = None
        self._starting = threading.Lock()  # protects _worker, and that nothing is given to one that was stopped

    # What may be asked, from any event loop

    async def prefill(
        self,
        ids: Sequence[int],
        past: Sequence[KV] = (),
        *,
        positions: Tensor | None = None,
        logits: Literal["none", "last", "all"] = "none",
        override: Sequence[LayerKV] | None = None,
        priority: int = 0,
    ) -> Prefilled:
        """Read `ids` behind `past`, which is left as it is. Logits are computed only where asked for."""
        job = Job(self._cache(past), list(ids), Mailbox(), logits, positions, override, priority=priority)
        await self._serve(job)
        return self._prefilled(job)

    async def prefill_many(
        self,
        rows: Sequence[Sequence[int]],
        past: Sequence[KV] = (),
        *,
        positions: Sequence[Tensor] | None = None,
        logits: Literal["none", "last", "all"] = "none",
        priority: int = 0,
    ) -> list[Prefilled]:
        """Read several rows, none empty, behind the same `past`. They arrive together, so they share their steps."""
        at: Sequence[Tensor | None] = positions or [None] * len(rows)
        jobs = [
            Job(self._cache(past), list(ids), Mailbox(), logits, where, priority=priority)
            for ids, where in zip(rows, at, strict=True)
        ]
        self._submit(jobs)
        try:
            for job in jobs:
                await self._finished(job)
        finally:
            for job in jobs:
                job.cancelled = True
        return [self._prefilled(job) for job in jobs]

    async def generate(
        self,
        ids: Sequence[int],
        past: Sequence[KV] = (),
        spec: GenerateSpec | None = None,
        *,
        positions: Tensor | None = None,
        on_text: Callable[[str], None] | None = None,
        seen: Sequence[int] = (),
        priority: int = 0,
    ) -> Generated:
        """Read `ids` (at least one) behind `past`, then decode. `seen`: tokens of `past`, for the penalty."""
        spec = spec or GenerateSpec()
        if spec.max_new_tokens == 0:
            done = await self.prefill(ids, past, positions=positions, priority=priority)
            return Generated([], "", "length", done.segments, done.cost)
        sampler = await self.sampler(spec, [*seen, *ids])
        tokenizer = self.model.tokenizer
        job = Job(
            self._cache(past),
            list(ids),
            Mailbox(),
            "last",
            positions,
            spec=spec,
            sampler=sampler,
            decoder=TextDecoder(tokenizer.decode, spec.stop) if tokenizer is not None else None,
            priority=priority,
        )
        await self._serve(job, on_text)
        text = job.decoder.text if job.decoder is not None else ""
        return Generated(job.reply, text, job.finish or "length", self._segments(job), job.cost, sampler.whole)

    async def sampler(self, spec: GenerateSpec, seen: Sequence[int] = ()) -> Sampler:
        """What chooses a reply's tokens. The first with a json_schema takes seconds, off the event loop."""
        if spec.json_schema is None:
            return Sampler(spec, self.model.info.eos_ids, seen)
        if self._grammars is None:
            raise ModelError(f"{self.model.name!r} has no tokenizer, so its replies can't be held to a json_schema")
        start = self._grammars.start
        grammar = await anyio.to_thread.run_sync(start, spec.json_schema, abandon_on_cancel=True)
        return Sampler(spec, self.model.info.eos_ids, seen, grammar)

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function in this engine's turn on its device, off the event loop."""
        mailbox: Mailbox[tuple[T | None, BaseException | None]] = Mailbox()

        def run() -> None:
            try:
                with torch.inference_mode():
                    mailbox.post((function(), None))
            except BaseException as error:  # handed to whoever asked
                mailbox.post((None, error))

        self._submit(run)
        async for value, error in mailbox:
            if error is not None:
                raise error
            return value  # type: ignore[return-value]
        raise AssertionError

    def close(self) -> None:
        """End the thread. Requests under way fail; later ones start it anew."""
        with self._starting:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    # On the asking side

    def _cache(self, past: Sequence[KV]) -> RowCache:
        if self.model.why_no_cache is None:
            return RowCache(past)
        assert not past
        return NativeCache()

    def _segments(self, job: Job) -> tuple[KV, ...]:
        return job.cache.freeze() if self.model.why_no_cache is None else ()

    async def _serve(self, job: Job, on_text: Callable[[str], None] | None = None) -> None:
        """Returns when the job is done; cancelled, the job leaves the batch before the next step."""
        if not job.pending:
            return
        self._submit([job])
        try:
            await self._finished(job, on_text)
        finally:
            job.cancelled = True

    async def _finished(self, job: Job, on_text: Callable[[str], None] | None = None) -> None:
        async for item in job.mailbox:
            if isinstance(item, str):
                if on_text is not None:
                    on_text(item)
                continue
            if job.error is not None:
                raise job.error
            return

    def _prefilled(self, job: Job) -> Prefilled:
        kv = job.cache.tail() if self.model.why_no_cache is None else None
        joined = torch.cat(job.logits) if job.logits else None
        return Prefilled(self._segments(job), kv, joined, job.cost)

    def _submit(self, work: "list[Job] | Callable[[], None]") -> None:
        with self._starting:
            if self._worker is None:
                self._worker = Worker(self.model)
            self._worker.submit(work)
