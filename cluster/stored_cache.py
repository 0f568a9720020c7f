"""KV caches whose tensors are in the object store. The driver handles these, and never the tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from uuid import uuid4
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor

from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.engine.kv.cache import KV, LayerKV
from cachegraph.engine.kv.recurrent_state import RecurrentState

from .object_store import Chunk, fetch_tensors, store_tensors

__all__ = ["CacheStore", "StoredKV"]


@dataclass(frozen=True, eq=False, repr=False)
class StoredKV(KV):
    """A KV without its tensors: `layers` is empty, and `state` has tensors of the meta device."""

    chunks: tuple[Chunk, ...] = ()
    depth: int = 0  # number of layers
    size: int = 0  # bytes of all tensors
    seconds: float = 0.0  # that storing it took
    id: str = ""

    @property
    def nbytes(self) -> int:
        return self.size


class CacheStore:
    """Stores and fetches the caches of one process, layers of (1, kv_heads, positions, head_dim).

    Nothing is fetched twice while it is in use.
    """

    def __init__(self) -> None:
        self._fetched: WeakValueDictionary[str, KV] = WeakValueDictionary()
        self._origins: WeakKeyDictionary[KV, StoredKV] = WeakKeyDictionary()  # of what was fetched
        self._caches: WeakValueDictionary[tuple[str, ...], SentCache] = WeakValueDictionary()

    def store(self, kv: KV) -> StoredKV:
        """Copy a KV to the object store; what came from there is not copied again. Takes as long as the copy."""
        if (known := self._origins.get(kv)) is not None:
            return known
        began = perf_counter()
        chunks = store_tensors(list(kv.tensors()))
        state = None if kv.state is None else kv.state.map(lambda tensor: tensor.to("meta"))
        return StoredKV(
            (),
            kv.positions,
            kv.factors,
            state,
            chunks,
            len(kv.layers),
            kv.nbytes,
            perf_counter() - began,
            uuid4().hex,
        )

    def store_cache(self, cache: SentCache) -> SentCache:
        """Copy all segments of a cache to the object store."""
        return replace(cache, segments=tuple(map(self.store, cache.segments)))

    async def fetch(self, kv: KV, device: torch.device) -> KV:
        """The KV with its tensors on this device. Raises an error of `ray.exceptions` if it is lost."""
        if not isinstance(kv, StoredKV):
            return kv
        if (known := self._fetched.get(kv.id)) is not None:
            return known
        tensors = [tensor.to(device) for tensor in await fetch_tensors(kv.chunks)]
        fetched = _assemble(kv, tensors)
        self._fetched[kv.id], self._origins[fetched] = fetched, kv
        return fetched

    async def fetch_cache(self, cache: SentCache, device: torch.device) -> SentCache:
        """The cache with its tensors on this device; the same object for the same segments, so grafts are shared."""
        key = (cache.sender, *(segment.id for segment in cache.segments if isinstance(segment, StoredKV)))
        if (known := self._caches.get(key)) is not None:
            return known
        segments = [await self.fetch(segment, device) for segment in cache.segments]
        fetched = replace(cache, segments=tuple(segments))
        self._caches[key] = fetched
        return fetched


def _assemble(kv: StoredKV, tensors: Sequence[Tensor]) -> KV:
    pairs = zip(tensors[: 2 * kv.depth : 2], tensors[1 : 2 * kv.depth : 2], strict=True)
    layers = tuple(LayerKV(keys, values) for keys, values in pairs)
    rest = iter(tensors[2 * kv.depth :])
    state: RecurrentState | None = None if kv.state is None else kv.state.map(lambda _: next(rest))
    return KV(layers, kv.positions, kv.factors, state)
