"""Chooses the requests of the next step. Knows no torch, only how many tokens each still has to compute, and its run.

Runs are served by virtual token counters (VTC, arXiv 2401.00588): the run that has been served least goes first, and a
new run starts at the lowest counter, so no run can save up service or be starved. Within a run, the request that the
longest chain of agents waits for goes first.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from .protocols import ScheduledRequest

__all__ = ["CHUNK", "Scheduler", "Share"]

# Prompts are computed in chunks that begin at multiples of this, whatever else runs. So the numbers of a row don't
# depend on its neighbours, and a long prompt delays the tokens of others by one chunk at most.
CHUNK = 128


RequestT = TypeVar("RequestT", bound=ScheduledRequest)


class Share(NamedTuple, Generic[RequestT]):
    """A request, and how many of its tokens this step computes."""

    request: RequestT
    tokens: int


@dataclass
class Scheduler(Generic[RequestT]):
    """A step computes a token of every request that decodes, and prompts up to `chunk` tokens."""

    max_rows: int = 64
    chunk: int = CHUNK
    requests: list[RequestT] = field(default_factory=list)  # in the order of their arrival
    _served: dict[object, int] = field(default_factory=dict)  # by run: its counter

    def __bool__(self) -> bool:
        return bool(self.requests)

    def add(self, request: RequestT) -> None:
        self._served.setdefault(request.run, min(self._served.values(), default=0))
        self.requests.append(request)

    def discard(self, done: Iterable[RequestT]) -> None:
        gone = set(map(id, done))
        if not gone:
            return
        self.requests = [request for request in self.requests if id(request) not in gone]
        runs = {request.run for request in self.requests}
        self._served = {run: count for run, count in self._served.items() if run in runs}

    def next_step(self) -> list[Share[RequestT]]:
        """The shares of the next step, at least one if there is a request; counts them as served."""
        chosen: list[Share[RequestT]] = []
        budget, prompts_wait = self.chunk, False
        for request in self._by_service():
            tokens = min(request.remaining, self.chunk)
            if request.remaining > 1:
                # A prompt that doesn't fit is first in the next step: smaller ones don't overtake it.
                prompts_wait = prompts_wait or tokens > budget
                if prompts_wait:
                    continue
                budget -= tokens
            chosen.append(Share(request, tokens))
            self._served[request.run] = self._served.get(request.run, 0) + tokens
            if len(chosen) == self.max_rows:
                break
        return chosen

    def _by_service(self) -> Iterator[RequestT]:
        """All requests, each from the run that has been served least by then."""
        queues: dict[object, list[tuple[bool, int, int]]] = {}
        for arrival, request in enumerate(self.requests):
            queues.setdefault(request.run, []).append((request.remaining > 1, -request.depth, arrival))
        heap = []
        for run, queue in queues.items():
            queue.sort(reverse=True)
            heap.append((self._served.get(run, 0), queue[-1], run))
        heapq.heapify(heap)
        while heap:
            _, (_, _, arrival), run = heap[0]
            queues[run].pop()
            yield self.requests[arrival]
            if queues[run]:
                heapq.heapreplace(heap, (self._served.get(run, 0), queues[run][-1], run))
            else:
                heapq.heappop(heap)
