"""Which rows run in the next step. Knows no torch: only how many tokens each job still has to compute."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

__all__ = ["CHUNK", "Scheduler", "Share"]

# Prompts are computed in pieces that begin at multiples of this, whoever else is running: so a row's numbers don't
# depend on its neighbours, and a long prompt doesn't hold up the others' tokens.
CHUNK = 512


class _Job(Protocol):
    @property
    def remaining(self) -> int:
        """Tokens that are known and not yet computed."""

    @property
    def priority(self) -> int:
        """Higher goes first."""


JobT = TypeVar("JobT", bound=_Job)


class Share(NamedTuple, Generic[JobT]):
    """A job, and how many of its tokens this step computes."""

    job: JobT
    tokens: int


@dataclass
class Scheduler(Generic[JobT]):
    """Rows that decode always run; prompts share what is left of a step's budget, by priority, then by arrival."""

    max_rows: int = 64
    chunk: int = CHUNK
    jobs: list[JobT] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.jobs)

    def add(self, job: JobT) -> None:
        self.jobs.append(job)

    def discard(self, done: Iterable[JobT]) -> None:
        gone = set(map(id, done))
        self.jobs = [job for job in self.jobs if id(job) not in gone]

    def next_step(self) -> list[Share[JobT]]:
        """The shares of the next step; at least one where there is a job."""
        decoding = [Share(job, 1) for job in self.jobs if job.remaining == 1][: self.max_rows]
        room, budget = self.max_rows - len(decoding), self.chunk
        chosen = list(decoding)
        for job in self._by_urgency():
            tokens = min(job.remaining, self.chunk)
            if room == 0 or (tokens > budget and chosen):
                break
            chosen.append(Share(job, tokens))
            room, budget = room - 1, budget - tokens
        return chosen

    def _by_urgency(self) -> Iterator[JobT]:
        yield from sorted((job for job in self.jobs if job.remaining > 1), key=lambda job: -job.priority)
