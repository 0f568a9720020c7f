"""Prefix cache: the KV of earlier prompts, found by their tokens.

It holds whole blocks of plain prompts: tokens at the beginning of a row, computed by the model alone in chunks that
begin at multiples of the block size. Nothing that was fused, grafted, decoded or read at other positions is kept. Since
prompts are always cut at the same places, the tokens behind a found block are computed as behind a fresh one: results
are the same, to the bit where rows run alone.
"""

import hashlib
import sys
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile

from ..kv.cache import KV, LayerKV
from .kv_budget import KVBudget
from .scheduler import CHUNK

__all__ = ["PrefixCache", "block_digests"]

IDLE = 3  # references to an idle block: the dictionary's, the loop's and getrefcount's own
MOST = 4  # blocks take up to a quarter of the budget


def block_digests(ids: Sequence[int], tenant: str | None, layers: int | None = None, factors: int = 0) -> list[bytes]:
    """By whole block, a digest of all tokens up to its end, of whose they are, of how many layers were computed, and
    of the RoPE frequencies (`KV.factors`)."""
    digest = hashlib.sha256(repr((tenant, layers, factors)).encode()).digest()
    digests = []
    for start in range(0, len(ids) - CHUNK + 1, CHUNK):
        digest = hashlib.sha256(digest + array("q", ids[start : start + CHUNK]).tobytes()).digest()
        digests.append(digest)
    return digests


class PrefixCache:
    """The blocks of one model in one dtype; the least recently used is evicted first."""

    def __init__(self, budget: KVBudget):
        self._budget = budget
        self._blocks: OrderedDict[bytes, KV] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def idle_bytes(self) -> int:
        """Of blocks that no row and no run uses: evicting these frees memory at once."""
        return sum(block.nbytes for block in self._blocks.values() if sys.getrefcount(block) <= IDLE)

    def find(self, digests: Sequence[bytes]) -> list[KV]:
        """The blocks that the cache holds of the longest beginning of a chain of digests."""
        held = list(takewhile(self._blocks.__contains__, digests))
        self._touch(held)
        return [self._blocks[digest] for digest in held]

    def keep(self, digests: Sequence[bytes], index: int, tail: KV) -> None:
        """Copy block `index`, which is the end of this tail, if there is room and all blocks before it are held."""
        before = digests[:index]
        if digests[index] in self._blocks or not all(map(self._blocks.__contains__, before)):
            return
        self._touch(before)
        size = _block_bytes(tail)
        while self.nbytes + size > self._budget.limit // MOST:
            if len(self._blocks) <= index:  # only the blocks before this one are left
                return
            self.evict()
        if size <= self._budget.room:
            block = self._blocks[digests[index]] = _copy(tail, len(tail) - CHUNK)
            self.nbytes += size
            self._touch(digests[: index + 1])
            self._budget.hold([block])

    def _touch(self, digests: Sequence[bytes]) -> None:
        """Mark the beginning of a chain as used just now.

        The first block becomes the youngest: so the oldest block is always the last of its chain, and evicting it
        leaves no block behind that has lost its beginning and can't be found.
        """
        for digest in reversed(digests):
            self._blocks.move_to_end(digest)

    def evict(self) -> bool:
        """Evict the least recently used block; False if there is none."""
        if not self._blocks:
            return False
        _, block = self._blocks.popitem(last=False)
        self.nbytes -= block.nbytes
        return True

    def clear(self) -> None:
        while self.evict():
            pass


def _block_bytes(tail: KV) -> int:
    state = tail.state.nbytes if tail.state is not None else 0
    return (tail.nbytes - state) // len(tail) * CHUNK + state


def _copy(tail: KV, start: int) -> KV:
    """Of its own memory, so that it does not keep the rest of the row alive."""
    end = slice(start, None)
    layers = tuple(LayerKV(*(tensor.clone() for tensor in layer.select(end))) for layer in tail.layers)
    state = tail.state.compact() if tail.state is not None else None
    return KV(layers, tail.positions[end].clone(), tail.factors, state)
