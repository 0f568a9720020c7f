"""Rows of an engine told with plain numbers: a position is one byte."""

from dataclasses import dataclass, field
from typing import Any

from cachegraph.engine.batching.admission import Admission
from cachegraph.engine.batching.kv_budget import KVBudget
from cachegraph.engine.batching.scheduler import Scheduler

__all__ = ["Cache", "Admission", "FakeRequest", "Segment", "hold", "rows", "step"]


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
class FakeRequest:
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

    budget: KVBudget
    nbytes: int = 0

    def fill(self, size: int) -> None:
        self.nbytes = size
        self.budget.reserve(-1, size)

    @property
    def idle_bytes(self) -> int:
        return self.nbytes

    def evict(self) -> bool:
        if not self.nbytes:
            return False
        self.fill(self.nbytes - 32)
        return True


def rows(budget: int) -> Admission[FakeRequest]:
    memory = KVBudget(budget)
    made: Admission[FakeRequest] = Admission(Scheduler(), memory, Store(memory), "m")
    return made


def step(work: Admission[FakeRequest]) -> list[FakeRequest]:
    """Take a step; those that are done, or can't be, leave."""
    shares = work.next_step()
    for request, tokens in shares:
        assert not request.out
        assert request.cache.used + tokens <= request.cache.capacity
        request.cache.used += tokens
        request.remaining -= tokens
        if not request.remaining and request.writes:
            request.remaining, request.writes = 1, request.writes - 1
    work.discard([request for request in work.requests if request.error or not request.remaining])
    return [request for request, _ in shares]


def hold(work: Admission[FakeRequest], run: object, size: int) -> None:
    """As if a run had left so much behind."""
    work.budget._held += size
    work.budget._by_run[run] += size
