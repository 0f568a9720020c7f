"""One model on one device, serving whoever asks: rows join and leave the running batch between steps.

An engine has one thread, off every event loop, so it serves runs of several loops at once. It knows tokens and caches;
it knows nothing of prompts, agents or channels.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor

from cachegraph.errors import CachegraphError, ModelError

from .forward import Row, forward
from .kv import KV, LayerKV, RowCache
from .load import LoadedModel
from .mailbox import Mailbox
from .native import NativeCache, native_forward
from .request import Cost, Generated, Prefilled
from .sampling import Sampler
from .scheduler import Scheduler, Share
from .spec import GenerateSpec
from .tokens import TextDecoder

__all__ = ["Engine"]

T = TypeVar("T")

# One computation at a time on a device: two that share its cores or its memory are slower than one after the other.
_device_locks: dict[torch.device, threading.Lock] = {}


@dataclass(eq=False)
class _Job:
    """One row at work."""

    cache: RowCache
    pending: list[int]  # known, not yet computed
    mailbox: "Mailbox[_Job | str]"
    logits_wanted: Literal["none", "last", "all"] = "none"
    positions: Tensor | None = None
    override: Sequence[LayerKV] | None = None
    # Where the row generates:
    spec: GenerateSpec | None = None
    sampler: Sampler | None = None
    decoder: TextDecoder | None = None
    seen: list[int] = field(default_factory=list)  # the prompt and the reply, for the repetition penalty
    reply: list[int] = field(default_factory=list)

    priority: int = 0
    arrived: float = field(default_factory=time.perf_counter)
    started: bool = False
    cost: Cost = field(default_factory=Cost)
    logits: list[Tensor] = field(default_factory=list)
    finish: Literal["eos", "stop", "length"] | None = None
    error: BaseException | None = None
    cancelled: bool = False

    @property
    def remaining(self) -> int:
        return len(self.pending)


class Engine:
    """Serves one loaded model. Its thread starts with the first request and ends with `close`."""

    def __init__(self, model: LoadedModel):
        self.model = model
        self._inbox: queue.SimpleQueue[list[_Job] | Callable[[], None] | None] = queue.SimpleQueue()
        self._scheduler: Scheduler[_Job] = Scheduler()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()  # protects _thread
        self._device = _device_locks.setdefault(model.device, threading.Lock())

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
        job = _Job(self._cache(past), list(ids), Mailbox(), logits, positions, override, priority=priority)
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
            _Job(self._cache(past), list(ids), Mailbox(), logits, where, priority=priority)
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
        tokenizer = self.model.tokenizer
        job = _Job(
            self._cache(past),
            list(ids),
            Mailbox(),
            "last",
            positions,
            spec=spec,
            sampler=Sampler(spec, self.model.info.eos_ids),
            decoder=TextDecoder(tokenizer.decode, spec.stop) if tokenizer is not None else None,
            seen=[*seen, *ids],
            priority=priority,
        )
        await self._serve(job, on_text)
        text = job.decoder.text if job.decoder is not None else ""
        return Generated(job.reply, text, job.finish or "length", self._segments(job), job.cost)

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
            thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(None)
            thread.join()

    # On the asking side

    def _cache(self, past: Sequence[KV]) -> RowCache:
        if self.model.why_no_cache is None:
            return RowCache(past)
        assert not past
        return NativeCache()

    def _segments(self, job: _Job) -> tuple[KV, ...]:
        return job.cache.freeze() if self.model.why_no_cache is None else ()

    async def _serve(self, job: _Job, on_text: Callable[[str], None] | None = None) -> None:
        """Returns when the job is done; cancelled, the job leaves the batch before the next step."""
        if not job.pending:
            return
        self._submit([job])
        try:
            await self._finished(job, on_text)
        finally:
            job.cancelled = True

    async def _finished(self, job: _Job, on_text: Callable[[str], None] | None = None) -> None:
        async for item in job.mailbox:
            if isinstance(item, str):
                if on_text is not None:
                    on_text(item)
                continue
            if job.error is not None:
                raise job.error
            return

    def _prefilled(self, job: _Job) -> Prefilled:
        kv = job.cache.tail() if self.model.why_no_cache is None else None
        joined = torch.cat(job.logits) if job.logits else None
        return Prefilled(self._segments(job), kv, joined, job.cost)

    def _submit(self, work: "list[_Job] | Callable[[], None]") -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"engine {self.model.name}", daemon=True)
                self._thread.start()
        self._inbox.put(work)

    # In the engine's thread

    def _work(self) -> None:
        while self._take_arrivals():
            self._scheduler.discard([job for job in self._scheduler.jobs if job.cancelled])
            shares = self._scheduler.next_step()
            if shares:
                self._step(shares)
        for job in self._scheduler.jobs:
            job.error = ModelError(f"the engine of {self.model.name!r} was closed")
            job.mailbox.post(job)
        self._scheduler.jobs.clear()

    def _take_arrivals(self) -> bool:
        """Everything that has arrived; waits where there is nothing else to do. False: close."""
        while True:
            try:
                work = self._inbox.get(block=not self._scheduler)
            except queue.Empty:
                return True
            if work is None:
                return False
            if isinstance(work, list):
                for job in work:
                    self._scheduler.add(job)
            else:
                with self._device:
                    work()

    def _step(self, shares: list[Share[_Job]]) -> None:
        now = time.perf_counter()
        for job, _ in shares:
            if not job.started:
                job.started, job.cost.queued = True, now - job.arrived
        try:
            with self._device, torch.inference_mode():
                logits = self._forward([self._row(*share) for share in shares])
                for (job, tokens), out in zip(shares, logits, strict=True):
                    self._advance(job, tokens, out)
        except Exception as error:  # a boundary: whatever a model raises belongs to whoever asked, not to this thread
            for job, _ in shares:
                job.error = _in_our_words(error, self.model)
        seconds = time.perf_counter() - now
        self._report(shares, seconds)

    def _row(self, job: _Job, tokens: int) -> Row:
        wanted = job.logits_wanted
        if wanted == "last" and tokens < len(job.pending):
            wanted = "none"
        positions = job.positions[:tokens] if job.positions is not None else None
        return Row(job.pending[:tokens], job.cache, wanted, positions, job.override)

    def _forward(self, rows: list[Row]) -> list[Tensor | None]:
        if self.model.why_no_cache is None:
            return forward(self.model.network, self.model.info, rows)
        return native_forward(self.model.network, rows)

    def _advance(self, job: _Job, tokens: int, logits: Tensor | None) -> None:
        """A job's tokens were computed: take its logits, and choose its next token where it generates."""
        del job.pending[:tokens]
        job.positions = job.positions[tokens:] if job.positions is not None and job.pending else None
        if logits is None or job.spec is None:
            if logits is not None:
                job.logits.append(logits)
            return
        assert job.sampler is not None
        token = job.sampler.choose(logits[-1], job.seen, len(job.reply))
        if token in self.model.info.eos_ids and not job.spec.ignore_eos:
            job.finish = "eos"
            return
        job.reply.append(token)
        job.seen.append(token)
        job.pending.append(token)

    def _report(self, shares: list[Share[_Job]], seconds: float) -> None:
        done = []
        for job, tokens in shares:
            _account(job, tokens, seconds)
            if job.error is None and job.spec is not None:
                self._pass_on(job)
            if job.error is not None or job.finish is not None or not job.pending:
                done.append(job)
                job.mailbox.post(job)
        self._scheduler.discard(done)

    def _pass_on(self, job: _Job) -> None:
        """Text that is certain goes out; a stop string or the length ends the reply."""
        assert job.spec is not None
        decoder = job.decoder
        if len(job.reply) > job.cost.generated:
            job.cost.generated = len(job.reply)
            if piece := decoder.push(job.reply[-1]) if decoder is not None else "":
                job.mailbox.post(piece)
        if job.finish is None and decoder is not None and decoder.stopped:
            job.finish = "stop"
        if job.finish is None and len(job.reply) >= job.spec.max_new_tokens:
            job.finish = "length"
        if job.finish is not None and decoder is not None and (rest := decoder.finish()):
            job.mailbox.post(rest)


def _account(job: _Job, tokens: int, seconds: float) -> None:
    if job.spec is not None and job.cost.generated:
        job.cost.decode += seconds
    else:
        job.cost.prefill += seconds
        job.cost.prefilled += tokens
    if job.reply and job.cost.first_token is None:
        job.cost.first_token = time.perf_counter()


def _in_our_words(error: Exception, model: LoadedModel) -> Exception:
    if isinstance(error, CachegraphError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return ModelError(
            f"{model.name!r} ran out of memory on {model.device}; use shorter prompts or fewer concurrent agents"
        )
    wrapped = ModelError(
        f"{model.name!r} failed in a forward pass: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    )
    wrapped.__cause__ = error
    return wrapped
