"""A bounded queue of runs; if it is full, clients are asked to retry later."""

import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import anyio

from .errors import ApiError
from .fair_limiter import FairLimiter

__all__ = ["RunQueue"]

WEIGHT = 0.2  # weight of the latest run in the moving average of run times
LONGEST = 120  # largest retry-after in seconds


class RunQueue:
    """A bounded queue, and the cancel scopes of its runs. Tenants take turns.

    With several tenants one of them can't take more than half of all places, or one place if that is more.
    """

    def __init__(self, running: int, waiting: int, tenants: int = 1):
        self.most_running, self.most_waiting = running, waiting
        self._share = running + waiting if tenants < 2 else max((running + waiting) // 2, 1)
        self._held: Counter[str | None] = Counter()  # places by tenant
        self.reserved = 0  # taken places, running or queued
        self.running = 0
        self.stopping = False
        self.refused = 0
        self._limiter = FairLimiter(running)
        self._seconds = 1.0  # estimated seconds per run
        self._scopes: set[anyio.CancelScope] = set()

    @property
    def waiting(self) -> int:
        return self.reserved - self.running

    @asynccontextmanager
    async def reserve(self, tenant: str | None, runs: int = 1) -> AsyncIterator[None]:
        """Reserve places for this number of runs. Raises ApiError: 429 if the queue is full, 503 on shutdown."""
        self.take(tenant, runs)
        try:
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                yield
            if scope.cancelled_caught:
                raise self._stopped()
        finally:
            self._scopes.discard(scope)
            self.give_back(tenant, runs)

    def take(self, tenant: str | None, runs: int = 1, *, waits: bool = False) -> None:
        """Take this number of places until `give_back`. Raises ApiError like `reserve`, unless it `waits`."""
        if self.stopping:
            raise self._stopped()
        held = self._held[tenant]
        is_full = self.reserved + runs > self.most_running + self.most_waiting
        if (is_full or (held and held + runs > self._share)) and not waits:
            self.refused += 1
            after = min(max(math.ceil(self._seconds * (self.waiting + runs) / self.most_running), 1), LONGEST)
            overall = f"{self.running} runs are at work and {self.waiting} wait, which is all this server takes on"
            own = f"{held} runs of yours are at work or wait, which is all this server takes on for one client"
            words = f"{overall if is_full else own}; come again in {after} s"
            raise ApiError(429, words, "queue_full", headers={"Retry-After": str(after)})
        self.reserved += runs
        self._held[tenant] += runs

    def give_back(self, tenant: str | None, runs: int = 1) -> None:
        """Release these places."""
        self.reserved -= runs
        self._held[tenant] -= runs
        if not self._held[tenant]:
            del self._held[tenant]

    @asynccontextmanager
    async def turn(self, tenant: str | None) -> AsyncIterator[None]:
        """Wait for a free running place."""
        async with self._limiter.turn(tenant):
            began = perf_counter()
            self.running += 1
            try:
                yield
            finally:
                self.running -= 1
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
