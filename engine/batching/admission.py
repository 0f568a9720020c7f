"""The rows of one engine: at work as far as there is memory for them, the others in line. Knows no torch.

A row gets memory for its whole prompt before it begins, and more, block by block, as its reply grows. Where there is
none left for a row that grows, those that began last give theirs up: their tails go elsewhere, and come back when there
is room. So the row that began first always goes on, and everybody's turn comes. Rows of runs that keep their caches for
rows to come are ordered by their runs, and come in only where all such runs can finish (`claims.py`).
"""

import gc
import time
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from cachegraph.errors import ModelError

from .kv_budget import Memory, size_words
from .run_admission import Claims
from .scheduler import Scheduler, Share

__all__ = ["PATIENCE", "Rows"]

PATIENCE = 60.0  # seconds for which a row waits while nothing runs and nothing is freed
FETCHING = 5.0  # the same, where its own run holds too much: replies that are done are held until they are fetched
GRACE = 0.05  # seconds for which rows wait for them before one goes beyond the budget
SPARE = 32  # positions by which every row at work may grow before somebody new comes in


class _Segment(Protocol):
    @property
    def nbytes(self) -> int: ...


class _Cache(Protocol):
    """As a RowCache."""

    capacity: int

    @property
    def segments(self) -> Sequence[_Segment]: ...
    def capacity_for(self, new: int) -> int: ...
    def make_room(self, new: int) -> None: ...


class _Job(Protocol):
    """As a Job."""

    admitted: int
    error: BaseException | None

    @property
    def position_bytes(self) -> int: ...
    @property
    def cache(self) -> _Cache: ...
    @property
    def remaining(self) -> int: ...
    @property
    def run(self) -> object: ...
    @property
    def depth(self) -> int: ...
    @property
    def holds(self) -> bool: ...
    @property
    def can_swap(self) -> bool: ...
    def swap_out(self) -> None: ...
    def swap_in(self) -> None: ...


class _Store(Protocol):
    """As Prefixes: what is given up first."""

    @property
    def idle_bytes(self) -> int:
        """What dropping all of it would free: nobody else reads it."""

    def drop(self) -> bool: ...


JobT = TypeVar("JobT", bound=_Job)


class Rows(Generic[JobT]):
    """Jobs at work and jobs in line. A job that can't go on gets its `error`; whoever calls takes it out."""

    def __init__(
        self,
        scheduler: Scheduler[JobT],
        memory: Memory,
        store: _Store,
        name: str,
        ahead: int = 0,
        state_bytes: int = 0,
    ):
        self.memory = memory
        self._scheduler = scheduler
        self._store = store
        self._name = name  # of the model
        self._ahead = ahead  # positions that a row has room for beyond what is asked of it
        self._state_bytes = state_bytes  # of a row's recurrent state, however long it is
        self._waiting: list[JobT] = []  # as they came
        self._swapped: list[JobT] = []
        self._admitted = 0
        self._claims = Claims(memory)
        self._given: dict[object, int] = {}  # by run: a counter of memory, as the scheduler's are of tokens
        self._stuck: tuple[int, float] | None = None  # the memory in use, and since when it has been so
        self._short: tuple[int, float] | None = None  # the same, when the oldest row last had no room to grow

    @property
    def at_work(self) -> bool:
        return bool(self._scheduler)

    @property
    def in_line(self) -> bool:
        return bool(self._waiting or self._swapped)

    @property
    def jobs(self) -> list[JobT]:
        return [*self._scheduler.jobs, *self._swapped, *self._waiting]

    def add(self, job: JobT) -> None:
        """Get in line. Raises ModelError where all of the budget is not enough."""
        self._check_size(job, job.remaining, 0)
        self._given.setdefault(job.run, min(self._given.values(), default=0))
        self._waiting.append(job)

    def discard(self, done: Iterable[JobT]) -> None:
        """They are over, or nobody wants them any more: what was reserved for them is free."""
        gone = {id(job) for job in done}
        if not gone:
            return
        for row in gone:
            self.memory.release(row)
        self._scheduler.discard([job for job in self._scheduler.jobs if id(job) in gone])
        self._waiting = [job for job in self._waiting if id(job) not in gone]
        self._swapped = [job for job in self._swapped if id(job) not in gone]
        runs = {job.run for job in self.jobs}
        self._given = {run: size for run, size in self._given.items() if run in runs}
        self._take_stock()

    def next_step(self) -> list[Share[JobT]]:
        """The shares of the next step; every row has room for its own. None where all rows wait for memory."""
        if self.in_line:
            self._admit()
        granted: set[int] = set()
        shares = self._scheduler.next_step() if self._scheduler else []
        for job, tokens in sorted(shares, key=lambda share: self._rank(share.job)):
            if job not in self._swapped and self._grow(job, tokens):
                granted.add(id(job))
        return [share for share in shares if id(share.job) in granted]

    def shrink(self, job: JobT) -> None:
        """Part of its prompt was found, so it needs less room. Nothing may be written in its tail yet."""
        job.cache.capacity = 0
        job.cache.make_room(job.remaining + self._ahead)
        self._reserve(job)

    # Who comes in

    def _admit(self) -> None:
        """Rows that were swapped out and rows of runs that hold memory come first: they are the ones who free it.

        Where one waits for room nobody new overtakes it, however little the other needs.
        """
        self._take_stock()
        room = True
        for job in self._line():
            if room or job in self._swapped or job.run in self._claims:
                room = self._enter(job) and room
        if self._scheduler or not self.in_line:
            self._stuck = None
        else:
            self._unblock()

    def _line(self) -> list[JobT]:
        """Who waits, in order: rows that were swapped out and rows of runs that hold memory, the oldest first.

        Then who was given least, then who came first; within a run by depth.
        """
        came: dict[object, int] = {}
        for place, job in enumerate(self._waiting):
            came.setdefault(job.run, place)
        waiting = sorted(
            self._waiting,
            key=lambda job: (*self._age(job.run), self._given[job.run], came[job.run], -job.depth),
        )
        swapped = sorted(self._swapped, key=self._rank)
        return sorted([*swapped, *waiting], key=lambda job: self._age(job.run, job in swapped, job.admitted))

    def _age(self, run: object, swapped: bool = False, admitted: int = 0) -> tuple[bool, int]:
        since = self._claims.since(run)
        if since is not None:
            return False, since
        return (False, admitted) if swapped else (True, 0)

    def _rank(self, job: JobT) -> tuple[int, int]:
        """Among rows that were admitted: lower goes first, and gives up its memory last."""
        since = self._claims.since(job.run)
        return (job.admitted if since is None else since), job.admitted

    def _take_stock(self) -> None:
        rows: dict[object, int] = {}
        for job in self._scheduler.jobs:
            rows[job.run] = rows.get(job.run, 0) + job.cache.capacity * job.position_bytes
        self._claims.update(rows, (job.run for job in (*self._waiting, *self._swapped)), self._admitted)

    def _enter(self, job: JobT) -> bool:
        own = self._needed(job)
        needed = own + SPARE * sum(each.position_bytes for each in self._scheduler.jobs)
        free = self.memory.room + self._store.idle_bytes - needed
        if free < 0 or not self._claims.is_safe(job, own, free):
            return False
        return self._find_room(job, needed)

    def _find_room(self, job: JobT, needed: int) -> bool:
        while needed > self.memory.room:
            if not self._store.drop():
                return False
        self._let_in(job)
        return True

    def _let_in(self, job: JobT) -> None:
        job.cache.make_room(job.remaining + self._ahead)
        self._reserve(job)
        if job in self._swapped:
            self._swapped.remove(job)
            job.swap_in()
        else:
            self._waiting.remove(job)
            self._admitted += 1
            self._given[job.run] += job.cache.capacity
            job.admitted = self._admitted
            self._claims.enter(job, job.cache.capacity * job.position_bytes, job.admitted)
        self._scheduler.add(job)
        self._take_stock()

    def _unblock(self) -> None:
        """Nothing runs, so nothing will be freed here: what is in use is held by runs between two of their turns.

        They have a moment to give some of it back. Then the first row comes in that there is room for, whatever others
        are likely to need. Where there is room for none, one goes on beyond the budget, so that its run can finish and
        free what it holds: the first that fits with what its run holds. A run that holds nothing waits for them.
        """
        if self._stuck is None:
            gc.collect()  # of caches that nothing but cycles of objects hold
            self._stuck = (self.memory.held, time.monotonic())
        elif self._stuck[0] != self.memory.held:
            self._stuck = (self.memory.held, time.monotonic())
        waited = time.monotonic() - self._stuck[1]
        if waited < GRACE:
            return
        line = self._line()
        for job in line:
            if (needed := self._needed(job)) <= self.memory.room + self._store.idle_bytes:
                self._find_room(job, needed)
                return
        refused: list[tuple[JobT, ModelError]] = []
        for job in line:
            held = self.memory.held_by(job.run)
            if not held and job not in self._swapped:
                break
            try:
                self._check_size(job, job.remaining, held)
            except ModelError as error:
                refused.append((job, error))
            else:
                self._let_in(job)
                return
        if refused and waited > FETCHING:
            refused[0][0].error = refused[0][1]
        elif not refused and waited > PATIENCE:
            line[0].error = ModelError(
                f"{self._name!r} has waited {PATIENCE:g} s for KV memory: {size_words(self.memory.held)} of "
                f"{size_words(self.memory.budget)} are held by caches that nobody gives back; {_REMEDY}"
            )

    # Who grows, and who makes room for it

    def _grow(self, job: JobT, tokens: int) -> bool:
        """Room for so many more tokens. False: it has to sit this step out."""
        tokens += self._ahead
        capacity = job.cache.capacity_for(tokens)
        if capacity == job.cache.capacity:
            return True
        more = (capacity - job.cache.capacity) * job.position_bytes
        while more > self.memory.room:
            if not (self._store.drop() or self._swap_out_one(job)):
                return self._go_beyond(job, tokens)
        job.cache.make_room(tokens)
        self._reserve(job)
        return True

    def _swap_out_one(self, job: JobT) -> bool:
        """The row that began last gives up its memory, if it began after this one."""
        mine = self._rank(job)
        younger = [each for each in self._scheduler.jobs if self._rank(each) > mine and each.can_swap]
        if not younger:
            return False
        last = max(younger, key=self._rank)
        self._scheduler.discard([last])
        self.memory.release(id(last))
        self._swapped.append(last)
        try:
            last.swap_out()
        except ModelError as error:
            last.error = error
        return True

    def _go_beyond(self, job: JobT, tokens: int) -> bool:
        """No younger row is left to take memory from. The oldest goes on all the same, if its own fits the budget."""
        if any(self._rank(each) < self._rank(job) for each in self._scheduler.jobs):
            return False
        try:
            self._check_size(job, tokens, 0)
        except ModelError as error:
            job.error = error
            return False
        if self._may_be_freed(job):
            return False
        job.cache.make_room(tokens)
        self._reserve(job)
        return True

    def _may_be_freed(self, job: JobT) -> bool:
        """Whether others hold caches that they may yet give back: a reply that is done is held until it is fetched."""
        held = self.memory.held
        if held <= sum(segment.nbytes for segment in job.cache.segments):
            return False
        if self._short is None or self._short[0] != held:
            self._short = (held, time.monotonic())
        return time.monotonic() - self._short[1] < GRACE

    def _needed(self, job: JobT) -> int:
        return self._size(job, job.cache.capacity_for(job.remaining + self._ahead))

    def _size(self, job: JobT, capacity: int) -> int:
        return capacity * job.position_bytes + self._state_bytes

    def _reserve(self, job: JobT) -> None:
        self.memory.reserve(id(job), self._size(job, job.cache.capacity))

    def _check_size(self, job: JobT, tokens: int, held: int) -> None:
        """Raises ModelError where a row with so many more tokens, and what its run holds, is more than the budget."""
        own = self._size(job, job.cache.capacity_for(tokens))
        shared = max(held, sum(segment.nbytes for segment in job.cache.segments))
        if own + shared > self.memory.budget:
            raise ModelError(
                f"{self._name!r} can't read this: {tokens} tokens need {size_words(own)} of KV memory behind "
                f"{size_words(shared)} that are there, and its budget is {size_words(self.memory.budget)}; {_REMEDY}"
            )


_REMEDY = "give the model more kv_memory, or set CACHEGRAPH_KV_MEMORY, or shorten what it reads"
