"""A limit of running work that several tenants share fairly."""

from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

__all__ = ["FairLimiter"]


class FairLimiter:
    """Lets at most `places` blocks run at a time.

    A free place goes to the waiting tenant with the fewest running blocks, among several to the one that has waited
    longest since its last turn. Blocks of one tenant run in the order in which they came.
    """

    def __init__(self, places: int):
        self._free = places
        self._running: Counter[str | None] = Counter()
        self._waiting: OrderedDict[str | None, deque[anyio.Event]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, tenant: str | None) -> AsyncIterator[None]:
        """Wait for a free place."""
        await self._acquire(tenant)
        try:
            yield
        finally:
            self._release(tenant)

    async def _acquire(self, tenant: str | None) -> None:
        if self._free:
            self._free -= 1
            self._running[tenant] += 1
            return
        event = anyio.Event()
        self._waiting.setdefault(tenant, deque()).append(event)
        try:
            await event.wait()
        except BaseException:
            if event.is_set():  # the place was given to it at the moment of its cancellation
                self._release(tenant)
            else:
                self._forget(tenant, event)
            raise

    def _release(self, tenant: str | None) -> None:
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        if not self._waiting:
            self._free += 1
            return
        if tenant in self._waiting:
            self._waiting.move_to_end(tenant)
        chosen = min(self._waiting, key=lambda candidate: self._running[candidate])  # the first of several
        event = self._waiting[chosen].popleft()
        self._waiting.move_to_end(chosen)
        if not self._waiting[chosen]:
            del self._waiting[chosen]
        self._running[chosen] += 1
        event.set()

    def _forget(self, tenant: str | None, event: anyio.Event) -> None:
        self._waiting[tenant].remove(event)
        if not self._waiting[tenant]:
            del self._waiting[tenant]
