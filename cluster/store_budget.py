"""How many bytes of caches may be under way in the object store. What doesn't fit is computed again for its reader."""

import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from weakref import finalize

from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.engine.batching.loop_bridge import Mailbox

from .stored_cache import StoredKV, is_dropped, without_tensors

__all__ = ["StoreBudget"]

WAITING = 0.5  # of a node's object store, for caches that wait for their readers
AGAIN = 0.25  # of the smallest node's, for those that were computed again for one turn

_borrows: ContextVar[bool] = ContextVar("cachegraph_borrows", default=False)


class StoreBudget:
    """The bytes of the caches that the runs of one connection hold. Safe for use by several event loops.

    A run that holds caches waits for nobody: a cache beyond the share of its node is dropped, and its reader's turn
    computes it again. Those turns wait for each other, and each gives all its bytes back when it ends.
    """

    def __init__(self, stores: Callable[[], Mapping[str, int]]):
        self._find_stores = stores  # bytes of each node's object store
        self._stores: Mapping[str, int] = {}
        self._lock = threading.RLock()  # a cache may be collected, and so given back, within any block
        self._holders: Counter[str] = Counter()  # by chunk
        self._held: Counter[str] = Counter()  # bytes by node
        self._expected: Counter[str] = Counter()
        self._gate = _Gate()

    @property
    def is_borrowing(self) -> bool:
        """Whether the caller is within `borrow`."""
        return _borrows.get()

    def room(self, node: str) -> int:
        """The bytes that a turn on this node may store."""
        with self._lock:
            return max(0, self._share(node) - self._held[node] - self._expected[node])

    def _share(self, node: str) -> int:
        if node not in self._stores:
            self._stores = self._find_stores()
        return int(self._stores.get(node, 0) * WAITING)

    @contextmanager
    def expecting(self, node: str, nbytes: int) -> Iterator[None]:
        """Within the block, a turn on this node is about to store so many bytes."""
        with self._lock:
            self._expected[node] += nbytes
        try:
            yield
        finally:
            with self._lock:
                self._expected[node] -= nbytes

    def hold(self, cache: SentCache, node: str) -> SentCache:
        """Count the cache until it is collected; if it doesn't fit, return it without tensors.

        Within `borrow`, one that doesn't fit is returned as it is: the caller has waited for its bytes.
        """
        return cache if self._count_if_fits(cache, node) or self.is_borrowing else without_tensors(cache)

    def holds(self, cache: SentCache) -> bool:
        """Whether all of this cache is in the store, and counted."""
        if is_dropped(cache):
            return False
        stored = [segment for segment in cache.segments if isinstance(segment, StoredKV)]
        with self._lock:
            return all(chunk.ref.hex() in self._holders for segment in stored for chunk in segment.tensors_at.chunks)

    def _count_if_fits(self, cache: SentCache, node: str) -> bool:
        segments = [segment for segment in cache.segments if isinstance(segment, StoredKV)]
        with self._lock:
            chunks = {chunk.ref.hex(): chunk.nbytes for segment in segments for chunk in segment.tensors_at.chunks}
            new = sum(size for name, size in chunks.items() if name not in self._holders)
            if self._held[node] + new > self._share(node):
                return False
            for segment in segments:
                sizes = {chunk.ref.hex(): chunk.nbytes for chunk in segment.tensors_at.chunks}
                self._count(node, sizes, 1)
                finalize(segment, self._count, node, sizes, -1).atexit = False
        return True

    def _count(self, node: str, sizes: Mapping[str, int], change: int) -> None:
        with self._lock:
            for name, size in sizes.items():
                before = self._holders[name]
                self._holders[name] += change
                if not before or not self._holders[name]:
                    self._held[node] += size * change
                if not self._holders[name]:
                    del self._holders[name]

    @asynccontextmanager
    async def borrow(self, nbytes: int) -> AsyncIterator[None]:
        """Wait until caches of so many bytes may be computed again; within the block, nothing waits once more."""
        if _borrows.get():
            yield
            return
        limit = int(min(self._stores.values(), default=0) * AGAIN)
        async with self._gate.passing(nbytes, limit):
            token = _borrows.set(True)
            try:
                yield
            finally:
                _borrows.reset(token)


class _Gate:
    """Lets so many bytes pass at once, in the order of asking; more than the limit only alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[Mailbox[None]] = deque()
        self._passing = 0

    @asynccontextmanager
    async def passing(self, nbytes: int, limit: int) -> AsyncIterator[None]:
        mailbox: Mailbox[None] = Mailbox()
        with self._lock:
            self._queue.append(mailbox)
        try:
            while not self._enter(mailbox, nbytes, limit):
                await anext(mailbox)
        except BaseException:  # also a cancellation
            with self._lock:
                self._queue.remove(mailbox)
                self._wake()
            raise
        try:
            yield
        finally:
            with self._lock:
                self._passing -= nbytes
                self._wake()

    def _enter(self, mailbox: Mailbox[None], nbytes: int, limit: int) -> bool:
        with self._lock:
            if self._queue[0] is not mailbox or (self._passing and self._passing + nbytes > limit):
                return False
            self._queue.popleft()
            self._passing += nbytes
            self._wake()
            return True

    def _wake(self) -> None:
        if self._queue:
            self._queue[0].post(None)
