"""An engine's thread: what has arrived joins the running batch, one step is computed, what is done leaves."""

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cachegraph.errors import CachegraphError, ModelError

from .forward import Row, forward
from .kv import LayerKV, RowCache
from .load import LoadedModel
from .mailbox import Mailbox
from .native import native_forward
from .request import Cost
from .sampling import Sampler, choose
from .scheduler import Scheduler, Share
from .spec import GenerateSpec
from .tokens import TextDecoder

__all__ = ["Job", "Worker"]

# One computation at a time on a device: two that share its cores or its memory are slower than one after the other.
_device_locks: dict[torch.device, threading.Lock] = {}


@dataclass(eq=False)
class Job:
    """One row at work."""

    cache: RowCache
    pending: list[int]  # known, not yet computed
    mailbox: "Mailbox[Job | str]"
    logits_wanted: Literal["none", "last", "all"] = "none"
    positions: Tensor | None = None
    override: Sequence[LayerKV] | None = None
    # Where the row generates:
    spec: GenerateSpec | None = None
    sampler: Sampler | None = None
    decoder: TextDecoder | None = None
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


class Worker:
    """A running thread and its jobs. Once stopped it is gone."""

    def __init__(self, model: LoadedModel):
        self._model = model
        self._inbox: queue.SimpleQueue[list[Job] | Callable[[], None] | None] = queue.SimpleQueue()
        # A recurrent model's prompt is read at once: transformers begins anew with every piece of several tokens.
        self._scheduler: Scheduler[Job] = Scheduler() if model.why_no_cache is None else Scheduler(chunk=sys.maxsize)
        self._device = _device_locks.setdefault(model.device, threading.Lock())
        self._thread = threading.Thread(target=self._work, name=f"engine {model.name}", daemon=True)
        self._thread.start()

    def submit(self, work: "list[Job] | Callable[[], None]") -> None:
        """Jobs to compute, or a function to call in between. Not after `stop`."""
        self._inbox.put(work)

    def stop(self) -> None:
        """Fail what is under way and wait for the thread's end."""
        self._inbox.put(None)
        self._thread.join()

    # In the thread. Nothing here keeps hold of a job that is over, or its cache would stay as long as the thread waits.

    def _work(self) -> None:
        while self._take_arrivals():
            self._scheduler.discard([job for job in self._scheduler.jobs if job.cancelled])
            if self._scheduler:
                self._step(self._scheduler.next_step())
        for job in self._scheduler.jobs:
            job.error = ModelError(f"the engine of {self._model.name!r} was closed")
            job.mailbox.post(job)
        self._scheduler.jobs.clear()

    def _take_arrivals(self) -> bool:
        """Everything that has arrived; waits where there is nothing else to do. False: stop."""
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
            work = None

    def _step(self, shares: list[Share[Job]]) -> None:
        began = time.perf_counter()
        for job, _ in shares:
            if not job.started:
                job.started, job.cost.queued = True, began - job.arrived
        with self._device, torch.inference_mode():
            for together in [shares] if self._model.why_no_cache is None else [[share] for share in shares]:
                self._compute(together)
        seconds, done = time.perf_counter() - began, []
        for job, tokens in shares:
            with self._blaming(job):
                _account(job, tokens, seconds)
                if job.error is None and job.spec is not None:
                    _pass_on(job)
            if job.error is not None or job.finish is not None or not job.pending:
                done.append(job)
                job.mailbox.post(job)
        self._scheduler.discard(done)

    def _compute(self, shares: list[Share[Job]]) -> None:
        """One forward pass. Where it fails the rows run again one by one, so that only who is to blame fails."""
        try:
            logits = self._forward([_row(*share) for share in shares])
        except Exception as error:  # a boundary: whatever a model raises belongs to whoever asked, not to this thread
            if len(shares) == 1:
                shares[0].job.error = _in_our_words(error, self._model)
            else:
                for share in shares:
                    self._compute([share])
            return
        for (job, tokens), out in zip(shares, logits, strict=True):
            _advance(job, tokens, out)
        ready = [
            (job, out[-1]) for (job, _), out in zip(shares, logits, strict=True) if out is not None and job.sampler
        ]
        self._choose(ready)

    def _choose(self, ready: list[tuple[Job, Tensor]]) -> None:
        """Every row's next token, in one batch. Where that fails the rows choose one by one, as above."""
        if not ready:
            return
        try:
            tokens = choose([job.sampler for job, _ in ready if job.sampler], [logits for _, logits in ready])
        except Exception as error:  # as above
            if len(ready) == 1:
                ready[0][0].error = _in_our_words(error, self._model)
            else:
                for each in ready:
                    self._choose([each])
            return
        for (job, _), token in zip(ready, tokens, strict=True):
            with self._blaming(job):
                _take(job, token, self._model.info.eos_ids)

    def _forward(self, rows: list[Row]) -> list[Tensor | None]:
        if self._model.why_no_cache is None:
            return forward(self._model.network, self._model.info, rows, self._model.decoder)
        return native_forward(self._model.network, rows)

    @contextmanager
    def _blaming(self, job: Job) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # as above: a sampler's or tokenizer's
            job.error = _in_our_words(error, self._model)


def _row(job: Job, tokens: int) -> Row:
    wanted = job.logits_wanted
    if wanted == "last" and tokens < len(job.pending):
        wanted = "none"
    positions = job.positions[:tokens] if job.positions is not None else None
    override = [layer.select(slice(tokens)) for layer in job.override] if job.override is not None else None
    return Row(job.pending[:tokens], job.cache, wanted, positions, override)


def _advance(job: Job, tokens: int, logits: Tensor | None) -> None:
    """A job's tokens were computed: take its logits where it is they that somebody wants."""
    del job.pending[:tokens]
    job.positions = job.positions[tokens:] if job.positions is not None and job.pending else None
    if job.override is not None:
        job.override = [layer.select(slice(tokens, None)) for layer in job.override]
    if logits is not None and job.sampler is None:
        job.logits.append(logits)


def _take(job: Job, token: int, eos_ids: frozenset[int]) -> None:
    """A job's next token is known: its reply ends or grows."""
    assert job.sampler is not None
    if job.sampler.take(token) in eos_ids and not job.sampler.spec.ignore_eos:
        job.finish = "eos"
        return
    job.reply.append(token)
    job.pending.append(token)
    if job.sampler.over:
        job.finish = "stop"


def _pass_on(job: Job) -> None:
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


def _account(job: Job, tokens: int, seconds: float) -> None:
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
