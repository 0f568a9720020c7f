"""Prefill of prompts by the frozen models, without gradients, and an LRU cache of the results."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from cachegraph.engine.kv.cache import KV, RowCache
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import LoadedModel

__all__ = ["LRUCache", "compact", "prefill"]

TOKENS_AT_ONCE = 2048
T = TypeVar("T")


@torch.no_grad()  # not inference mode: autograd graphs use these caches
def prefill(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    past: Sequence[tuple[KV, ...]] | None = None,
    positions: Sequence[Tensor | None] | None = None,
    layers: int | None = None,
) -> list[KV]:
    """Prefill non-empty prompts, each after its own past, and return the cache that each added. Batches short prompts.

    `positions` has for each prompt (tokens,) int64 positions, or None for consecutive ones. `layers` limits the
    computation to the model's first layers. A returned layer's keys and values are (1, kv_heads, tokens, head_dim).
    """
    at = positions or [None] * len(prompts)
    behind = past or [()] * len(prompts)
    rows = [
        Row(list(ids), RowCache(segments), "none", where, layers=layers)
        for ids, segments, where in zip(prompts, behind, at, strict=True)
    ]
    batch: list[Row] = []
    for index, row in enumerate(rows):
        batch.append(row)
        if (
            index + 1 == len(rows)
            or sum(len(queued.ids) for queued in batch) + len(rows[index + 1].ids) > TOKENS_AT_ONCE
        ):
            forward(model.network, model.info, batch)
            batch = []
    return [row.cache.tail() for row in rows]


def compact(kv: KV) -> KV:
    """A copy without the spare capacity of a growing cache, each layer (1, kv_heads, positions, head_dim).

    A cache with a recurrent state is returned as it is.
    """
    return kv if kv.state is not None else kv.select(torch.arange(len(kv)))


class LRUCache(Generic[T]):
    """Least-recently-used cache, limited in bytes."""

    def __init__(self, limit: int, nbytes: Callable[[T], int]):
        self._limit = limit
        self._nbytes = nbytes
        self._held: OrderedDict[Hashable, T] = OrderedDict()
        self._used = 0

    def get(self, keys: Sequence[Hashable], make: Callable[[list[int]], Sequence[T]]) -> list[T]:
        """The values of these keys. Calls `make` at most once, with the indices of missing values."""
        missing = [index for index, key in enumerate(keys) if key not in self._held and key not in keys[:index]]
        made = dict(zip([keys[index] for index in missing], make(missing), strict=True)) if missing else {}
        found = []
        for key in keys:
            if key in self._held:
                self._held.move_to_end(key)
            found.append(made[key] if key in made else self._held[key])
        for key, value in made.items():
            self._held[key] = value
            self._used += self._nbytes(value)
        while self._used > self._limit and self._held:
            _, old = self._held.popitem(last=False)
            self._used -= self._nbytes(old)
        return found
