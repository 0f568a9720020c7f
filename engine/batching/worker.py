"""An engine's thread: what has arrived joins the running batch, one step is computed, what is done leaves."""

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from cachegraph.errors import CachegraphError, ModelError

from ..model.devices import Exclusively
from ..model.forward import Row, forward
from ..model.hf_fallback import native_forward
from ..model.load import LoadedModel
from ..sampling.sampler import Meanwhile, choose
from .admission import Rows
from .kv_budget import Memory, position_bytes
from .long_rope_prefill import begin, grown
from .prefix_cache import Prefixes, chain
from .request_state import Job
from .scheduler import CHUNK, Scheduler, Share

__all__ = ["Worker"]

_SOON = 0.005  # seconds between two looks whether somebody else has freed memory


class Worker:
    """A running thread and its jobs. Once stopped it is gone."""

    def __init__(self, model: LoadedModel, budget: int):
        self._model = model
        self._inbox: queue.SimpleQueue[list[Job] | Callable[[], None] | None] = queue.SimpleQueue()
        # Such a model's prompt is read at once: some begin anew with every piece of several tokens.
        scheduler: Scheduler[Job] = Scheduler() if model.why_no_cache is None else Scheduler(chunk=sys.maxsize)
        self.memory = Memory(budget)
        self.prefixes = Prefixes(self.memory)
        self._reuses = os.environ.get("CACHEGRAPH_PREFIX_REUSE", "1") != "0"
        # A step that is begun ahead writes one entry more than anybody has asked for.
        ahead = int(model.decoder is not None and model.decoder.begin_next is not None)
        self._rows = Rows(scheduler, self.memory, self.prefixes, model.name, ahead, model.info.state_bytes)
        self._device = Exclusively(model.devices)
        self._threads = torch.get_num_threads()  # where another thread is on one just now, a new one would stay on one
        self.failed: Exception | None = None  # what ended the thread, if nobody stopped it
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
        torch.set_num_threads(self._threads)
        went_on = True
        ended: Exception = ModelError(f"the engine of {self._model.name!r} was closed")
        try:
            while self._take_arrivals(went_on):
                self._drop_cancelled()
                went_on = self._run_step()
        except BaseException as error:  # nobody may wait for a thread that is gone
            ended = _in_our_words(error, self._model)
            self.failed = ended
            self._turn_away(ended)
        for job in self._rows.jobs:
            job.error = ended
        self._take_out(self._rows.jobs)
        self.prefixes.clear()

    def _turn_away(self, error: Exception) -> None:
        """Fail the jobs that have arrived meanwhile; functions that are to be called fail or work by themselves."""
        while not self._inbox.empty():
            work = self._inbox.get()
            if isinstance(work, list):
                for job in work:
                    job.error = error
                    job.mailbox.post(job)
            elif work is not None:
                work()

    def _take_arrivals(self, went_on: bool) -> bool:
        """Everything that has arrived; waits for the first where there is nothing else to do. False: stop."""
        # What rows wait for is freed by others, who don't say so.
        patience = _SOON if self._rows.at_work or self._rows.in_line else None
        wait = not (self._rows.at_work and went_on)
        while True:
            try:
                work = self._inbox.get(wait, patience)
            except queue.Empty:
                return True
            wait = False
            if work is None:
                return False
            if isinstance(work, list):
                self._welcome(work)
            else:
                with self._device:
                    work()
            work = None

    def _welcome(self, jobs: list[Job]) -> None:
        decoder = self._model.decoder
        for job in jobs:
            job.position_bytes = position_bytes(self._model, job.layers)
            job.short = decoder is not None and len(job.pending) <= decoder.max_short_prompt
            with self._blaming(job):
                if (by_length := self._model.info.by_length) is not None:
                    begin(job, by_length, self._model.name)
                self.memory.hold(job.cache.segments, job.account.run)
                self._rows.add(job)
            if job.error is not None:
                job.mailbox.post(job)

    def _drop_cancelled(self) -> None:
        self._rows.discard([job for job in self._rows.jobs if job.cancelled])

    def _run_step(self) -> bool:
        """False: no row has the memory to go on."""
        with self._device, torch.inference_mode():
            shares = self._rows.next_step()
        self._take_out([job for job in self._rows.jobs if job.error is not None])
        if shares:
            self._step(shares)
        return bool(shares)

    def _take_out(self, jobs: list[Job]) -> None:
        """They are done or have failed: whoever asked gets them."""
        self._rows.discard(jobs)
        for job in jobs:
            job.cache.keep_state()
            job.cost.kv_bytes = sum(segment.nbytes for segment in job.cache.freeze())
            self.memory.hold([job.cache.tail()], job.account.run)  # what it leaves behind
            job.mailbox.post(job)

    def _step(self, shares: list[Share[Job]]) -> None:
        began = time.perf_counter()
        for job, _ in shares:
            if not job.started:
                job.started, job.cost.queued = True, began - job.arrived
                self._reuse(job)
        shares = [Share(job, min(tokens, job.remaining)) for job, tokens in shares]
        with self._device, torch.inference_mode():
            for together in [shares] if self._model.why_no_cache is None else [[share] for share in shares]:
                self._compute(together)
        seconds, done = time.perf_counter() - began, []
        for job, tokens in shares:
            with self._blaming(job):
                _account(job, tokens, seconds)
                self._keep(job, tokens)
                if job.error is None and job.spec is not None:
                    _pass_on(job)
            if job.error is not None or job.finish is not None or not job.pending:
                done.append(job)
        self._take_out(done)

    def _reuse(self, job: Job) -> None:
        """Take the beginning of a plain prompt from what was read before."""
        if self._model.why_no_cache is not None or not (self._reuses and job.is_plain):
            return
        by_length = self._model.info.by_length
        factors = 0 if by_length is None else by_length.factors(job.length)
        job.chain = chain(job.pending, job.account.tenant, job.layers, factors)
        if job.logits_wanted == "all":
            return
        job.cache.continue_from(self.prefixes.find(job.chain[: (job.remaining - 1) // CHUNK]))
        job.cost.reused = len(job.cache)
        if job.cost.reused:
            del job.pending[: job.cost.reused]
            self._rows.shrink(job)

    def _keep(self, job: Job, tokens: int) -> None:
        """Its last tokens may have been a whole block of a plain prompt, which others can take."""
        blocks, rest = divmod(len(job.cache), CHUNK)
        if job.error is None and tokens == CHUNK and not rest and blocks <= len(job.chain):
            with torch.inference_mode():
                self.prefixes.keep(job.chain, blocks - 1, job.cache.tail())

    def _compute(self, shares: list[Share[Job]]) -> None:
        """One forward pass. Where it fails the rows run again one by one, so that only who is to blame fails."""
        try:
            logits = self._forward([_row(*share) for share in shares])
        except BaseException as error:  # a boundary: what a model raises, or a panic of Rust code, belongs to who asked
            if isinstance(error, torch.OutOfMemoryError):
                self.prefixes.clear()
                torch.cuda.empty_cache()
            if len(shares) == 1:
                shares[0].job.error = _in_our_words(error, self._model)
            else:
                for share in shares:
                    self._compute([share])
            return
        for (job, tokens), out in zip(shares, logits, strict=True):
            _advance(job, tokens, out)
            if job.sampler is not None and not job.pending and not job.reply:
                job.cache.keep_state()  # what takes the prompt alone continues from here
        ready = [
            (job, out[-1]) for (job, _), out in zip(shares, logits, strict=True) if out is not None and job.sampler
        ]
        self._choose(ready)

    def _choose(self, ready: list[tuple[Job, Tensor]]) -> None:
        """Every row's next token, in one batch. Where that fails the rows choose one by one, as above."""
        if not ready:
            return
        try:
            samplers = [job.sampler for job, _ in ready if job.sampler]
            tokens = choose(samplers, [logits for _, logits in ready], self._ahead([job for job, _ in ready]))
        except BaseException as error:  # as above
            if len(ready) == 1:
                ready[0][0].error = _in_our_words(error, self._model)
            else:
                for each in ready:
                    self._choose([each])
            return
        for (job, _), token in zip(ready, tokens, strict=True):
            with self._blaming(job):
                _take(job, token, self._model.info.eos_ids)
                if (by_length := self._model.info.by_length) is not None and job.finish is None:
                    grown(job, by_length, self._model.name)

    def _ahead(self, jobs: list[Job]) -> Meanwhile | None:
        """What begins the next step of these rows while the host looks at this one's tokens; None: nothing does."""
        begin = self._model.decoder and self._model.decoder.begin_next
        if not begin or all(job.spec is None or len(job.reply) + 1 >= job.spec.max_new_tokens for job in jobs):
            return None
        return partial(begin, [job.cache for job in jobs])

    def _forward(self, rows: list[Row]) -> list[Tensor | None]:
        if self._model.why_no_cache is None:
            return forward(self._model.network, self._model.info, rows, self._model.decoder)
        return native_forward(self._model.network, rows)

    @contextmanager
    def _blaming(self, job: Job) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # as above: a sampler's or tokenizer's
            job.error = _in_our_words(error, self._model)


def _row(job: Job, tokens: int) -> Row:
    wanted = job.logits_wanted
    if wanted == "last" and tokens < len(job.pending):
        wanted = "none"
    positions = job.positions[:tokens] if job.positions is not None else None
    override = [layer.select(slice(tokens)) for layer in job.override] if job.override is not None else None
    on_layer = job.on_layer if tokens == len(job.pending) else None
    return Row(
        job.pending[:tokens],
        job.cache,
        wanted,
        positions,
        override,
        short=job.short,
        on_layer=on_layer,
        length=job.length or None,
        layers=job.layers,
    )


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
        piece = decoder.push(job.reply[-1]) if decoder is not None else ""
        if piece and job.streams:
            job.mailbox.post(piece)
    if job.finish is None and decoder is not None and decoder.stopped:
        job.finish = "stop"
    if job.finish is None and len(job.reply) >= job.spec.max_new_tokens:
        job.finish = "length"
    if job.finish is not None and decoder is not None and (rest := decoder.finish()) and job.streams:
        job.mailbox.post(rest)


def _account(job: Job, tokens: int, seconds: float) -> None:
    if job.spec is not None and job.cost.generated:
        job.cost.decode += seconds
    else:
        job.cost.prefill += seconds
        job.cost.prefilled += tokens
    if job.reply and job.cost.first_token is None:
        job.cost.first_token = time.perf_counter()


def _in_our_words(error: BaseException, model: LoadedModel) -> Exception:
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
