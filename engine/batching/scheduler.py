"""Which rows run in the next step. Knows no torch: only how many tokens each job still has to compute, and for whom.

Runs are served by virtual token counters (arXiv 2401.00588): the run that has had least goes first, and a run that
arrives begins where the one with least stands, so nobody can hoard turns or be kept from one. Within a run, what the
longest chain of agents waits for goes first.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

__all__ = ["CHUNK", "Scheduler", "Share"]

# Prompts are computed in pieces that begin at multiples of this, whoever else is running: so a row's numbers don't
# depend on its neighbours, and a long prompt holds up the others' tokens for one piece at most.
CHUNK = 128


class _Job(Protocol):
    @property
    def remaining(self) -> int:
        """Tokens that are known and not yet computed."""

    @property
    def run(self) -> object:
        """Whose turn it takes; hashable."""

    @property
    def depth(self) -> int:
        """Higher goes first within a run."""


JobT = TypeVar("JobT", bound=_Job)


class Share(NamedTuple, Generic[JobT]):
    """A job, and how many of its tokens this step computes."""

    job: JobT
    tokens: int


@dataclass
class Scheduler(Generic[JobT]):
    """A step computes a token of every row that decodes, and prompts up to a budget of `chunk` tokens."""

    max_rows: int = 64
    chunk: int = CHUNK
    jobs: list[JobT] = field(default_factory=list)  # in the order of their arrival
    _served: dict[object, int] = field(default_factory=dict)  # by run: its counter

    def __bool__(self) -> bool:
        return bool(self.jobs)

    def add(self, job: JobT) -> None:
        self._served.setdefault(job.run, min(self._served.values(), default=0))
        self.jobs.append(job)

    def discard(self, done: Iterable[JobT]) -> None:
        gone = set(map(id, done))
        if not gone:
            return
        self.jobs = [job for job in self.jobs if id(job) not in gone]
        runs = {job.run for job in self.jobs}
        self._served = {run: count for run, count in self._served.items() if run in runs}

    def next_step(self) -> list[Share[JobT]]:
        """The shares of the next step; at least one where there is a job. What it gives is counted as served."""
        chosen: list[Share[JobT]] = []
        budget, prompts_wait = self.chunk, False
        for job in self._in_turn():
            tokens = min(job.remaining, self.chunk)
            if job.remaining > 1:
                # A prompt that doesn't fit comes first among the next step's: smaller ones don't overtake it.
                prompts_wait = prompts_wait or tokens > budget
                if prompts_wait:
                    continue
                budget -= tokens
            chosen.append(Share(job, tokens))
            self._served[job.run] = self._served.get(job.run, 0) + tokens
            if len(chosen) == self.max_rows:
                break
        return chosen

    def _in_turn(self) -> Iterator[JobT]:
        """All jobs, each from the run that has had least by the time it is taken."""
        queues: dict[object, list[tuple[bool, int, int]]] = {}
        for arrival, job in enumerate(self.jobs):
            queues.setdefault(job.run, []).append((job.remaining > 1, -job.depth, arrival))
        heap = []
        for run, queue in queues.items():
            queue.sort(reverse=True)
            heap.append((self._served.get(run, 0), queue[-1], run))
        heapq.heapify(heap)
        while heap:
            _, (_, _, arrival), run = heap[0]
            queues[run].pop()
            yield self.jobs[arrival]
            if queues[run]:
                heapq.heapreplace(heap, (self._served.get(run, 0), queues[run][-1], run))
            else:
                heapq.heappop(heap)
