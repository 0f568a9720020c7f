"""Rows of an engine told with plain numbers: a position is one byte."""

from dataclasses import dataclass, field
from typing import Any

from cachegraph.engine.batching.admission import Rows
from cachegraph.engine.batching.kv_budget import Memory
from cachegraph.engine.batching.scheduler import Scheduler

__all__ = ["Cache", "Job", "Rows", "Segment", "hold", "rows", "step"]


@dataclass
class Segment:
    nbytes: int


@dataclass
class Cache:
    segments: list[Segment] = field(default_factory=list)
    capacity: int = 0
    used: int = 0

    def capacity_for(self, new: int) -> int:
        return max(self.capacity, -(-(self.used + new) // 32) * 32)

    def make_room(self, new: int) -> None:
        self.capacity = self.capacity_for(new)


@dataclass(eq=False)
class Job:
    remaining: int
    writes: int = 0  # tokens of its reply
    run: Any = field(default_factory=object)
    depth: int = 0
    cache: Cache = field(default_factory=Cache)
    position_bytes: int = 1
    admitted: int = 0
    error: BaseException | None = None
    holds: bool = False
    can_swap: bool = True
    out: bool = False
    swaps: int = 0

    def swap_out(self) -> None:
        assert not self.out
        self.out, self.swaps = True, self.swaps + 1

    def swap_in(self) -> None:
        assert self.out
        self.out = False


@dataclass
class Store:
    """Blocks of 32 bytes, which may be given up."""

    memory: Memory
    nbytes: int = 0

    def fill(self, size: int) -> None:
        self.nbytes = size
        self.memory.reserve(-1, size)

    @property
    def idle_bytes(self) -> int:
        return self.nbytes

    def drop(self) -> bool:
        if not self.nbytes:
            return False
        self.fill(self.nbytes - 32)
        return True


def rows(budget: int) -> Rows[Job]:
    memory = Memory(budget)
    made: Rows[Job] = Rows(Scheduler(), memory, Store(memory), "m")
    return made


def step(work: Rows[Job]) -> list[Job]:
    """Take a step; those that are done, or can't be, leave."""
    shares = work.next_step()
    for job, tokens in shares:
        assert not job.out
        assert job.cache.used + tokens <= job.cache.capacity
        job.cache.used += tokens
        job.remaining -= tokens
        if not job.remaining and job.writes:
            job.remaining, job.writes = 1, job.writes - 1
    work.discard([job for job in work.jobs if job.error or not job.remaining])
    return [job for job, _ in shares]


def hold(work: Rows[Job], run: object, size: int) -> None:
    """As if a run had left so much behind."""
    work.memory._held += size
    work.memory._by_run[run] += size
