"""An engine's thread: new requests join the running batch, one step is computed, finished requests leave."""

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

from ..model.devices import DeviceLock
from ..model.forward import Row, forward
from ..model.hf_fallback import fallback_forward
from ..model.load import LoadedModel
from ..sampling.reply import ReplyState
from ..sampling.sampler import OnSampled, sample
from .admission import Admission, Load
from .kv_budget import KVBudget, position_bytes
from .long_rope_prefill import check_growth, start_request
from .prefix_cache import PrefixCache, block_digests
from .request_state import RequestState
from .scheduler import CHUNK, Scheduler, Share

__all__ = ["EngineLoop"]

_SOON = 0.005  # seconds between two checks whether memory was freed elsewhere


class EngineLoop:
    """A running thread and its requests. A stopped loop can't be started again."""

    def __init__(self, model: LoadedModel, budget: int):
        self._model = model
        self._inbox: queue.SimpleQueue[list[RequestState] | Callable[[], None] | None] = queue.SimpleQueue()
        # A model whose cache can't travel reads a prompt at once: some restart with every chunk of several tokens.
        scheduler: Scheduler[RequestState] = Scheduler() if model.why_no_cache is None else Scheduler(chunk=sys.maxsize)
        self.budget = KVBudget(budget)
        self.prefixes = PrefixCache(self.budget)
        self._reuses = os.environ.get("CACHEGRAPH_PREFIX_REUSE", "1") != "0"
        # A step that begins early writes one entry more than was asked for.
        ahead = int(model.decoder is not None and model.decoder.begin_next is not None)
        self._admission = Admission(scheduler, self.budget, self.prefixes, model.name, ahead, model.info.state_bytes)
        self._device_lock = DeviceLock(model.devices)
        self._threads = torch.get_num_threads()  # a new thread would inherit a temporary limit of another
        self.failed: Exception | None = None  # the error that ended the thread; None if it was stopped
        self._submitting = threading.Lock()  # protects `failed`, and that a failed loop gets no work
        self._thread = threading.Thread(target=self._work, name=f"engine {model.name}", daemon=True)
        self._thread.start()

    @property
    def load(self) -> Load:
        """How many requests there are now."""
        return self._admission.load

    def submit(self, work: "list[RequestState] | Callable[[], None]") -> bool:
        """Requests to compute, or a function to call between two steps. Not after `stop`. False: the thread failed."""
        with self._submitting:
            if self.failed is None:
                self._inbox.put(work)
            return self.failed is None

    def stop(self) -> None:
        """Fail the requests under way and wait for the thread to end."""
        self._inbox.put(None)
        self._thread.join()

    # Within the thread. No local variable may keep a finished request, or its cache would live while the thread waits.

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        stepped = True
        ended: Exception = ModelError(f"the engine of {self._model.name!r} was closed")
        try:
            while self._take_arrivals(stepped):
                self._drop_cancelled()
                stepped = self._run_step()
        except BaseException as error:  # no request may wait for a thread that has ended
            ended = _as_engine_error(error, self._model)
            with self._submitting:
                self.failed = ended
            self._fail_arrivals(ended)
        for request in self._admission.requests:
            request.error = ended
        self._finish(self._admission.requests)
        self.prefixes.clear()

    def _fail_arrivals(self, error: Exception) -> None:
        """Fail the requests that have arrived in the meantime; call the functions, which report their own errors."""
        while not self._inbox.empty():
            work = self._inbox.get()
            if isinstance(work, list):
                for request in work:
                    request.error = error
                    request.mailbox.post(request)
            elif work is not None:
                work()

    def _take_arrivals(self, stepped: bool) -> bool:
        """Take all that has arrived; wait for the first if there is nothing to compute. False: stop."""
        # Memory that requests wait for is freed elsewhere, without notice.
        patience = _SOON if self._admission.at_work or self._admission.in_line else None
        wait = not (self._admission.at_work and stepped)
        while True:
            try:
                work = self._inbox.get(wait, patience)
            except queue.Empty:
                return True
            wait = False
            if work is None:
                return False
            if isinstance(work, list):
                self._accept(work)
            else:
                with self._device_lock:
                    work()
            work = None

    def _accept(self, requests: list[RequestState]) -> None:
        decoder = self._model.decoder
        for request in requests:
            request.position_bytes = position_bytes(self._model, request.layers)
            request.short = decoder is not None and len(request.pending) <= decoder.max_short_prompt
            with self._errors_of(request):
                if (by_length := self._model.info.by_length) is not None:
                    start_request(request, by_length, self._model.name)
                self.budget.hold(request.cache.segments, request.context.run)
                self._admission.add(request)
            if request.error is not None:
                request.mailbox.post(request)

    def _drop_cancelled(self) -> None:
        self._admission.discard([request for request in self._admission.requests if request.cancelled])

    def _run_step(self) -> bool:
        """Compute a step. False: no request has the memory for it."""
        with self._device_lock, torch.inference_mode():
            shares = self._admission.next_step()
        self._finish([request for request in self._admission.requests if request.error is not None])
        if shares:
            self._step(shares)
        return bool(shares)

    def _finish(self, requests: list[RequestState]) -> None:
        """Requests that are done or have failed go back to their callers."""
        self._admission.discard(requests)
        for request in requests:
            request.cache.keep_state()
            request.cost.kv_bytes = sum(segment.nbytes for segment in request.cache.freeze())
            self.budget.hold([request.cache.tail()], request.context.run)  # what it leaves behind
            request.mailbox.post(request)

    def _step(self, shares: list[Share[RequestState]]) -> None:
        began = time.perf_counter()
        for request, _ in shares:
            if not request.started:
                request.started, request.cost.queued = True, began - request.arrived
                self._reuse(request)
        shares = [Share(request, min(tokens, request.remaining)) for request, tokens in shares]
        with self._device_lock, torch.inference_mode():
            for batch in [shares] if self._model.why_no_cache is None else [[share] for share in shares]:
                self._compute(batch)
        seconds, done = time.perf_counter() - began, []
        for request, tokens in shares:
            with self._errors_of(request):
                if request.error is None and request.sampled is not None:
                    self._take_token(request, request.sampled)
                _record_cost(request, tokens, seconds)
                self._keep_prefix(request, tokens)
                if request.error is None and request.reply is not None:
                    _stream_text(request, request.reply)
            finished = request.reply is not None and request.reply.finish is not None
            if request.error is not None or finished or not request.pending:
                done.append(request)
        self._finish(done)

    def _reuse(self, request: RequestState) -> None:
        """Take the beginning of a plain prompt from the prefix cache."""
        if self._model.why_no_cache is not None or not (self._reuses and request.is_plain):
            return
        by_length = self._model.info.by_length
        factors = 0 if by_length is None else by_length.factors(request.length)
        request.block_digests = block_digests(request.pending, request.context.tenant, request.layers, factors)
        if request.logits_wanted == "all":
            return
        request.cache.continue_from(self.prefixes.find(request.block_digests[: (request.remaining - 1) // CHUNK]))
        request.cost.reused = len(request.cache)
        if request.cost.reused:
            del request.pending[: request.cost.reused]
            self._admission.shrink(request)

    def _keep_prefix(self, request: RequestState, tokens: int) -> None:
        """Put the last tokens into the prefix cache if they complete a block of a plain prompt."""
        blocks, rest = divmod(len(request.cache), CHUNK)
        if request.error is None and tokens == CHUNK and not rest and blocks <= len(request.block_digests):
            with torch.inference_mode():
                self.prefixes.keep(request.block_digests, blocks - 1, request.cache.tail())

    def _compute(self, shares: list[Share[RequestState]]) -> None:
        """One forward pass. If it fails, the rows run again one by one, so that only the faulty one fails."""
        try:
            logits = self._forward([_row(*share) for share in shares])
        except BaseException as error:  # a boundary: what a model raises, or a panic in Rust, fails its request
            if isinstance(error, torch.OutOfMemoryError):
                self.prefixes.clear()
                torch.cuda.empty_cache()
            if len(shares) == 1:
                shares[0].request.error = _as_engine_error(error, self._model)
            else:
                for share in shares:
                    self._compute([share])
            return
        for (request, tokens), out in zip(shares, logits, strict=True):
            _advance(request, tokens, out)
            if request.reply is not None and not request.pending and not request.reply.ids:
                request.cache.keep_state()  # a continuation of the prompt alone starts here
        ready = [
            (request, out[-1])
            for (request, _), out in zip(shares, logits, strict=True)
            if out is not None and request.reply is not None
        ]
        self._sample(ready)

    def _sample(self, ready: list[tuple[RequestState, Tensor]]) -> None:
        """Sample each row's next token, in one batch. If that fails, one by one, as above."""
        if not ready:
            return
        try:
            samplers = [request.reply.sampler for request, _ in ready if request.reply is not None]
            tokens = sample(
                samplers, [logits for _, logits in ready], self._next_step_of([request for request, _ in ready])
            )
        except BaseException as error:  # as above
            if len(ready) == 1:
                ready[0][0].error = _as_engine_error(error, self._model)
            else:
                for row in ready:
                    self._sample([row])
            return
        for (request, _), token in zip(ready, tokens, strict=True):
            request.sampled = token

    def _take_token(self, request: RequestState, token: int) -> None:
        """Append the sampled token to the reply; if the reply goes on, the next step computes the token."""
        assert request.reply is not None
        request.sampled = None
        with torch.inference_mode():  # in which the sampler's tensors were made
            finish = request.reply.take(token)
        if finish is not None:
            return
        request.pending.append(token)
        if (by_length := self._model.info.by_length) is not None:
            check_growth(request, by_length, self._model.name)

    def _next_step_of(self, requests: list[RequestState]) -> OnSampled | None:
        """Begins the next step of these rows before the host has this one's tokens; None where nothing can begin."""
        begin = self._model.decoder and self._model.decoder.begin_next
        if not begin or all(
            request.reply is None or len(request.reply.ids) + 1 >= request.reply.sampler.spec.max_new_tokens
            for request in requests
        ):
            return None
        return partial(begin, [request.cache for request in requests])

    def _forward(self, rows: list[Row]) -> list[Tensor | None]:
        if self._model.why_no_cache is None:
            return forward(self._model.network, self._model.info, rows, self._model.decoder)
        return fallback_forward(self._model.network, rows)

    @contextmanager
    def _errors_of(self, request: RequestState) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # as above, in a sampler or tokenizer
            request.error = _as_engine_error(error, self._model)


def _row(request: RequestState, tokens: int) -> Row:
    wanted = request.logits_wanted
    if wanted == "last" and tokens < len(request.pending):
        wanted = "none"
    positions = request.positions[:tokens] if request.positions is not None else None
    override = [layer.select(slice(tokens)) for layer in request.override] if request.override is not None else None
    on_layer = request.on_layer if tokens == len(request.pending) else None
    return Row(
        request.pending[:tokens],
        request.cache,
        wanted,
        positions,
        override,
        short=request.short,
        on_layer=on_layer,
        length=request.length or None,
        layers=request.layers,
    )


def _advance(request: RequestState, tokens: int, logits: Tensor | None) -> None:
    """A request's tokens were computed: drop them from `pending`, and keep the logits if they were asked for."""
    del request.pending[:tokens]
    request.positions = request.positions[tokens:] if request.positions is not None and request.pending else None
    if request.override is not None:
        request.override = [layer.select(slice(tokens, None)) for layer in request.override]
    if logits is not None and request.reply is None:
        request.logits.append(logits)


def _stream_text(request: RequestState, reply: ReplyState) -> None:
    """Post the text that has become final."""
    request.cost.generated = len(reply.ids)
    if (piece := reply.read()) and request.streams:
        request.mailbox.post(piece)


def _record_cost(request: RequestState, tokens: int, seconds: float) -> None:
    if request.cost.generated:
        request.cost.decode += seconds
    else:
        request.cost.prefill += seconds
        request.cost.prefilled += tokens
    if request.reply is not None and request.reply.ids and request.cost.first_token is None:
        request.cost.first_token = time.perf_counter()


def _as_engine_error(error: BaseException, model: LoadedModel) -> Exception:
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
