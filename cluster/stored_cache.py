"""KV caches whose tensors are in the object store. The driver handles these, and never the tensors."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from uuid import uuid4
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import torch
from ray.exceptions import ObjectStoreFullError, OutOfDiskError
from torch import Tensor

from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.engine.kv.cache import KV, LayerKV
from cachegraph.engine.kv.recurrent_state import RecurrentState
from cachegraph.errors import RunError

from .object_store import StoredTensors, fetch_tensors, store_tensors
from .wait import FULL

__all__ = ["CacheStore", "StoredKV", "is_dropped", "without_tensors"]


NOWHERE = StoredTensors()


@dataclass(frozen=True, eq=False, repr=False)
class StoredKV(KV):
    """A KV without its tensors: `layers` is empty, and `state` has tensors of the meta device.

    If it has no chunks either, the store had no room for it, so its reader computes it again.
    """

    tensors_at: StoredTensors = NOWHERE
    depth: int = 0  # number of layers
    size: int = 0  # bytes of all tensors
    seconds: float = 0.0  # that storing it took
    id: str = ""

    @property
    def nbytes(self) -> int:
        return self.size


def is_dropped(cache: SentCache) -> bool:
    """Whether the store had no room for a part of this cache."""
    return any(
        isinstance(segment, StoredKV) and segment.size and not segment.tensors_at.chunks for segment in cache.segments
    )


def without_tensors(cache: SentCache) -> SentCache:
    """The cache as if the store had had no room for it."""
    segments = [
        replace(segment, tensors_at=NOWHERE) if isinstance(segment, StoredKV) else segment for segment in cache.segments
    ]
    return replace(cache, segments=tuple(segments))


class CacheStore:
    """Stores and fetches the caches of one process, layers of (1, kv_heads, positions, head_dim).

    Nothing is fetched twice while it is in use.

    What was stored is stored once while it is in use, if it is among the last `remembered` bytes: a document that
    this process keeps for later prompts goes to the store with the first of them.
    """

    def __init__(self, remembered: int = 0) -> None:
        self._fetched: WeakValueDictionary[str, KV] = WeakValueDictionary()
        self._known: WeakKeyDictionary[KV, StoredKV] = WeakKeyDictionary()  # what was fetched, and stored lately
        self._caches: WeakValueDictionary[tuple[str, ...], SentCache] = WeakValueDictionary()
        self._lock = threading.Lock()  # turns store in threads
        self._remembered = remembered
        self._lately: list[tuple[WeakSet[KV], int]] = []  # what was stored together, and its bytes

    def store(self, kvs: Sequence[KV], room: int | None = None) -> tuple[StoredKV, ...]:
        """Copy KVs to the object store; what is there is not copied again. Takes as long as the copy.

        If the others have more than `room` bytes, or the store and its disk are full in spite of it, they are dropped
        instead. Raises RunError if the store is full and `room` is None.
        """
        began = perf_counter()
        found = {kv: replace(stored, seconds=0.0) for kv in kvs if (stored := self._known.get(kv)) is not None}
        new = [kv for kv in dict.fromkeys(kvs) if kv not in found]
        size = sum(kv.nbytes for kv in new)
        places = [NOWHERE] * len(new)
        fits = room is None or size <= room
        if fits:
            try:
                places = store_tensors([list(kv.tensors()) for kv in new])
            except (ObjectStoreFullError, OutOfDiskError) as error:
                if room is None:
                    raise RunError(FULL) from error
                fits = False
        seconds = perf_counter() - began
        made = {kv: _stored(kv, place, seconds / len(new)) for kv, place in zip(new, places, strict=True)}
        if fits:
            self._remember(made, size)
        return tuple((found | made)[kv] for kv in kvs)

    def _remember(self, made: Mapping[KV, StoredKV], size: int) -> None:
        with self._lock:
            self._lately = [(held, size) for held, size in self._lately if held]
            self._lately.append((WeakSet(made), size))
            self._known.update(made)
            while sum(size for _, size in self._lately) > self._remembered:
                for kv in self._lately.pop(0)[0]:
                    self._known.pop(kv, None)

    def store_cache(self, cache: SentCache, room: int | None = None) -> SentCache:
        """Copy all segments of a cache to the object store."""
        return replace(cache, segments=self.store(cache.segments, room))

    async def fetch(self, kvs: Sequence[KV], device: torch.device) -> list[KV]:
        """The KVs with their tensors on this device. Raises an error of `ray.exceptions` if one is lost."""
        stored = {kv.id: kv for kv in kvs if isinstance(kv, StoredKV)}
        found = {id: fetched for id in stored if (fetched := self._fetched.get(id)) is not None}
        missing = [kv for id, kv in stored.items() if id not in found]
        for kv, tensors in zip(missing, await fetch_tensors([kv.tensors_at for kv in missing]), strict=True):
            fetched = _assemble(kv, [tensor.to(device) for tensor in tensors])
            self._fetched[kv.id], self._known[fetched], found[kv.id] = fetched, kv, fetched
        return [found[kv.id] if isinstance(kv, StoredKV) else kv for kv in kvs]

    async def fetch_cache(self, cache: SentCache, device: torch.device) -> SentCache:
        """The cache with its tensors on this device; the same object for the same segments, so grafts are shared."""
        key = (cache.sender, *(segment.id for segment in cache.segments if isinstance(segment, StoredKV)))
        if (known := self._caches.get(key)) is not None:
            return known
        fetched = replace(cache, segments=tuple(await self.fetch(cache.segments, device)))
        self._caches[key] = fetched
        return fetched


def _stored(kv: KV, place: StoredTensors, seconds: float) -> StoredKV:
    state = None if kv.state is None else kv.state.map(lambda tensor: tensor.to("meta"))
    return StoredKV((), kv.positions, kv.factors, state, place, len(kv.layers), kv.nbytes, seconds, uuid4().hex)


def _assemble(kv: StoredKV, tensors: Sequence[Tensor]) -> KV:
    pairs = zip(tensors[: 2 * kv.depth : 2], tensors[1 : 2 * kv.depth : 2], strict=True)
    layers = tuple(LayerKV(keys, values) for keys, values in pairs)
    rest = iter(tensors[2 * kv.depth :])
    state: RecurrentState | None = None if kv.state is None else kv.state.map(lambda _: next(rest))
    return KV(layers, kv.positions, kv.factors, state)
