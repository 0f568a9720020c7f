"""Which requests of an engine are at work, and which wait for KV memory. Knows no torch.

A request gets memory for its whole prompt before it begins, and more, block by block, as its reply grows. If there is
none left for a request that grows, those that began last are swapped out: their tails leave the device and come back
when there is room. So the request that began first always continues, and everyone is served eventually. Requests of
runs that keep their caches for later requests are ordered by run, and are admitted only if all such runs can finish
(`run_admission.py`).
"""

import gc
import time
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

from cachegraph.errors import ModelError

from .kv_budget import KVBudget, size_words
from .protocols import AdmittedRequest, Evictable
from .run_admission import RunAdmission
from .scheduler import Scheduler, Share

__all__ = ["PATIENCE", "Admission", "Load"]

PATIENCE = 60.0  # seconds that a request waits while nothing runs and no memory is freed
FETCHING = 5.0  # the same, where its own run holds too much: finished replies are held until they are fetched
GRACE = 0.05  # seconds that requests wait for those before one exceeds the budget
SPARE = 32  # positions by which every request at work must be able to grow before another is admitted

RequestT = TypeVar("RequestT", bound=AdmittedRequest)


class Load(NamedTuple):
    """An engine's requests."""

    running: int = 0
    waiting: int = 0  # for memory, and not yet begun
    swapped: int = 0  # begun, and moved out of the device's memory
    swaps: int = 0  # how often that has happened


class Admission(Generic[RequestT]):
    """Requests at work and requests that wait. One that can't continue gets its `error`; the caller discards it."""

    def __init__(
        self,
        scheduler: Scheduler[RequestT],
        budget: KVBudget,
        prefixes: Evictable,
        name: str,
        ahead: int = 0,
        state_bytes: int = 0,
    ):
        self.budget = budget
        self._scheduler = scheduler
        self._prefixes = prefixes
        self._name = name  # of the model
        self._ahead = ahead  # positions that a request has room for beyond what is asked of it
        self._state_bytes = state_bytes  # of a request's recurrent state, however long it is
        self._waiting: list[RequestT] = []  # in the order of their arrival
        self._swapped: list[RequestT] = []
        self._admitted = 0
        self._swaps = 0
        self._runs = RunAdmission(budget)
        self._given: dict[
            object, int
        ] = {}  # by run: memory that its requests were given, as the scheduler counts tokens
        self._stuck: tuple[int, float] | None = None  # the memory held, and since when it has not changed
        self._short: tuple[int, float] | None = None  # the same, when the oldest request last had no room to grow

    @property
    def at_work(self) -> bool:
        return bool(self._scheduler)

    @property
    def in_line(self) -> bool:
        return bool(self._waiting or self._swapped)

    @property
    def requests(self) -> list[RequestT]:
        return [*self._scheduler.requests, *self._swapped, *self._waiting]

    @property
    def load(self) -> Load:
        """How many requests there are. May be read from any thread."""
        return Load(len(self._scheduler.requests), len(self._waiting), len(self._swapped), self._swaps)

    def add(self, request: RequestT) -> None:
        """Let a request wait. Raises ModelError if it needs more than the whole budget."""
        self._check_size(request, request.remaining, 0)
        self._given.setdefault(request.run, min(self._given.values(), default=0))
        self._waiting.append(request)

    def discard(self, done: Iterable[RequestT]) -> None:
        """Remove requests that are over or cancelled, and free what is reserved for them."""
        gone = {id(request) for request in done}
        if not gone:
            return
        for key in gone:
            self.budget.release(key)
        self._scheduler.discard([request for request in self._scheduler.requests if id(request) in gone])
        self._waiting = [request for request in self._waiting if id(request) not in gone]
        self._swapped = [request for request in self._swapped if id(request) not in gone]
        runs = {request.run for request in self.requests}
        self._given = {run: size for run, size in self._given.items() if run in runs}
        self._update_runs()

    def next_step(self) -> list[Share[RequestT]]:
        """The shares of the next step, each with room for its tokens; empty while all requests wait for memory."""
        if self.in_line:
            self._admit()
        granted: set[int] = set()
        shares = self._scheduler.next_step() if self._scheduler else []
        for request, tokens in sorted(shares, key=lambda share: self._rank(share.request)):
            if request not in self._swapped and self._grow(request, tokens):
                granted.add(id(request))
        return [share for share in shares if id(share.request) in granted]

    def shrink(self, request: RequestT) -> None:
        """Reserve less: a part of its prompt was found in the prefix cache. Its tail has to be empty still."""
        request.cache.capacity = 0
        request.cache.make_room(request.remaining + self._ahead)
        self._reserve(request)

    # Admitting

    def _admit(self) -> None:
        """Admit requests in order: swapped-out ones and those of runs that hold memory first, since they free it.

        A new request never overtakes one that waits for room, however little it needs.
        """
        self._update_runs()
        room = True
        for request in self._line():
            if room or request in self._swapped or request.run in self._runs:
                room = self._try_admit(request) and room
        if self._scheduler or not self.in_line:
            self._stuck = None
        else:
            self._unblock()

    def _line(self) -> list[RequestT]:
        """Waiting requests in order: swapped-out ones and those of runs that hold memory, the oldest first.

        Then by how little memory their run was given, then by arrival; within a run by depth.
        """
        came: dict[object, int] = {}
        for place, request in enumerate(self._waiting):
            came.setdefault(request.run, place)
        waiting = sorted(
            self._waiting,
            key=lambda request: (*self._age(request.run), self._given[request.run], came[request.run], -request.depth),
        )
        swapped = sorted(self._swapped, key=self._rank)
        return sorted(
            [*swapped, *waiting], key=lambda request: self._age(request.run, request in swapped, request.admitted)
        )

    def _age(self, run: object, swapped: bool = False, admitted: int = 0) -> tuple[bool, int]:
        since = self._runs.since(run)
        if since is not None:
            return False, since
        return (False, admitted) if swapped else (True, 0)

    def _rank(self, request: RequestT) -> tuple[int, int]:
        """Among admitted requests: lower goes first, and is swapped out last."""
        since = self._runs.since(request.run)
        return (request.admitted if since is None else since), request.admitted

    def _update_runs(self) -> None:
        rows: dict[object, int] = {}
        for request in self._scheduler.requests:
            rows[request.run] = rows.get(request.run, 0) + request.cache.capacity * request.position_bytes
        self._runs.update(rows, (request.run for request in (*self._waiting, *self._swapped)), self._admitted)

    def _try_admit(self, request: RequestT) -> bool:
        own = self._needed(request)
        needed = own + SPARE * sum(running.position_bytes for running in self._scheduler.requests)
        free = self.budget.room + self._prefixes.idle_bytes - needed
        if free < 0 or not self._runs.is_safe(request, own, free):
            return False
        return self._admit_if_room(request, needed)

    def _admit_if_room(self, request: RequestT, needed: int) -> bool:
        while needed > self.budget.room:
            if not self._prefixes.evict():
                return False
        self._admit_request(request)
        return True

    def _admit_request(self, request: RequestT) -> None:
        request.cache.make_room(request.remaining + self._ahead)
        self._reserve(request)
        if request in self._swapped:
            self._swapped.remove(request)
            request.swap_in()
        else:
            self._waiting.remove(request)
            self._admitted += 1
            self._given[request.run] += request.cache.capacity
            request.admitted = self._admitted
            self._runs.enter(request, request.cache.capacity * request.position_bytes, request.admitted)
        self._scheduler.add(request)
        self._update_runs()

    def _unblock(self) -> None:
        """Admit a request though nothing runs here that could free memory: runs hold it between two of their turns.

        They have a moment to free some. Then the first request is admitted that there is room for, whatever other runs
        are likely to need. If there is room for none, one exceeds the budget, so that its run can finish and free what
        it holds: the first that fits with what its run holds. Requests of runs that hold nothing wait for those.
        """
        if self._stuck is None:
            gc.collect()  # reference cycles may hold caches
            self._stuck = (self.budget.held, time.monotonic())
        elif self._stuck[0] != self.budget.held:
            self._stuck = (self.budget.held, time.monotonic())
        waited = time.monotonic() - self._stuck[1]
        if waited < GRACE:
            return
        line = self._line()
        for request in line:
            if (needed := self._needed(request)) <= self.budget.room + self._prefixes.idle_bytes:
                self._admit_if_room(request, needed)
                return
        refused: list[tuple[RequestT, ModelError]] = []
        for request in line:
            held = self.budget.held_by(request.run)
            if not held and request not in self._swapped:
                break
            try:
                self._check_size(request, request.remaining, held)
            except ModelError as error:
                refused.append((request, error))
            else:
                self._admit_request(request)
                return
        if refused and waited > FETCHING:
            refused[0][0].error = refused[0][1]
        elif not refused and waited > PATIENCE:
            line[0].error = ModelError(
                f"{self._name!r} has waited {PATIENCE:g} s for KV memory: {size_words(self.budget.held)} of "
                f"{size_words(self.budget.limit)} are held by caches that nobody gives back; {_REMEDY}"
            )

    # Growing, and swapping out to make room

    def _grow(self, request: RequestT, tokens: int) -> bool:
        """Reserve room for more tokens. False: the request skips this step."""
        tokens += self._ahead
        capacity = request.cache.capacity_for(tokens)
        if capacity == request.cache.capacity:
            return True
        more = (capacity - request.cache.capacity) * request.position_bytes
        while more > self.budget.room:
            if not (self._prefixes.evict() or self._swap_out_one(request)):
                return self._exceed_budget(request, tokens)
        request.cache.make_room(tokens)
        self._reserve(request)
        return True

    def _swap_out_one(self, request: RequestT) -> bool:
        """Swap out the request that began last, if it began after this one."""
        rank = self._rank(request)
        younger = [running for running in self._scheduler.requests if self._rank(running) > rank and running.can_swap]
        if not younger:
            return False
        last = max(younger, key=self._rank)
        self._scheduler.discard([last])
        self.budget.release(id(last))
        self._swapped.append(last)
        self._swaps += 1
        try:
            last.swap_out()
        except ModelError as error:
            last.error = error
        return True

    def _exceed_budget(self, request: RequestT, tokens: int) -> bool:
        """Let the oldest request exceed the budget if no younger one has memory to give and its own row would fit."""
        if any(self._rank(running) < self._rank(request) for running in self._scheduler.requests):
            return False
        try:
            self._check_size(request, tokens, 0)
        except ModelError as error:
            request.error = error
            return False
        if self._may_be_freed(request):
            return False
        request.cache.make_room(tokens)
        self._reserve(request)
        return True

    def _may_be_freed(self, request: RequestT) -> bool:
        """Whether others hold caches that they may free soon: a finished reply is held until it is fetched."""
        held = self.budget.held
        if held <= sum(segment.nbytes for segment in request.cache.segments):
            return False
        if self._short is None or self._short[0] != held:
            self._short = (held, time.monotonic())
        return time.monotonic() - self._short[1] < GRACE

    def _needed(self, request: RequestT) -> int:
        return self._size(request, request.cache.capacity_for(request.remaining + self._ahead))

    def _size(self, request: RequestT, capacity: int) -> int:
        return capacity * request.position_bytes + self._state_bytes

    def _reserve(self, request: RequestT) -> None:
        self.budget.reserve(id(request), self._size(request, request.cache.capacity))

    def _check_size(self, request: RequestT, tokens: int, held: int) -> None:
        """Raise ModelError if the request, with these tokens added, and what its run holds exceed the budget."""
        own = self._size(request, request.cache.capacity_for(tokens))
        shared = max(held, sum(segment.nbytes for segment in request.cache.segments))
        if own + shared > self.budget.limit:
            raise ModelError(
                f"{self._name!r} can't read this: {tokens} tokens need {size_words(own)} of KV memory behind "
                f"{size_words(shared)} that are there, and its budget is {size_words(self.budget.limit)}; {_REMEDY}"
            )


_REMEDY = "give the model more kv_memory, or set CACHEGRAPH_KV_MEMORY, or shorten what it reads"
