"""A bounded queue of runs; if it is full, clients are asked to retry later."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import anyio

from .errors import ApiError

__all__ = ["RunQueue"]

WEIGHT = 0.2  # weight of the latest run in the moving average of run times
LONGEST = 120  # largest retry-after in seconds


class RunQueue:
    """A bounded first-in, first-out queue, and the cancel scopes of its runs."""

    def __init__(self, running: int, waiting: int):
        self.most_running, self.most_waiting = running, waiting
        self.reserved = 0  # taken places, running or queued
        self.running = 0
        self.stopping = False
        self.refused = 0
        self._limiter = anyio.CapacityLimiter(running)
        self._seconds = 1.0  # estimated seconds per run
        self._scopes: set[anyio.CancelScope] = set()

    @property
    def waiting(self) -> int:
        return self.reserved - self.running

    @asynccontextmanager
    async def reserve(self, runs: int = 1) -> AsyncIterator[None]:
        """Reserve places for this number of runs. Raises ApiError: 429 if the queue is full, 503 on shutdown."""
        self.take(runs)
        try:
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                yield
            if scope.cancelled_caught:
                raise self._stopped()
        finally:
            self._scopes.discard(scope)
            self.give_back(runs)

    def take(self, runs: int = 1, *, waits: bool = False) -> None:
        """Take this number of places until `give_back`. Raises ApiError like `reserve`, unless it `waits`."""
        if self.stopping:
            raise self._stopped()
        if self.reserved + runs > self.most_running + self.most_waiting and not waits:
            self.refused += 1
            after = min(max(math.ceil(self._seconds * (self.waiting + runs) / self.most_running), 1), LONGEST)
            raise ApiError(
                429,
                f"{self.running} runs are at work and {self.waiting} wait, which is all this server takes on; "
                f"come again in {after} s",
                "queue_full",
                headers={"Retry-After": str(after)},
            )
        self.reserved += runs

    def give_back(self, runs: int = 1) -> None:
        """Release these places."""
        self.reserved -= runs

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a free running place."""
        me = object()
        await self._limiter.acquire_on_behalf_of(me)
        began = perf_counter()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._limiter.release_on_behalf_of(me)
            self._seconds += WEIGHT * (perf_counter() - began - self._seconds)

    def stop(self) -> None:
        """Reject new runs; let queued ones finish."""
        self.stopping = True

    def cancel(self) -> None:
        """Cancel everything in the queue; its clients are told that the server stops."""
        self.stop()
        for scope in self._scopes:
            scope.cancel()

    @staticmethod
    def _stopped() -> ApiError:
        return ApiError(503, "the server is shutting down; ask again when it is back", "shutting_down")
