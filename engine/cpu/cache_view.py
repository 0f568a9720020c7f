"""One row's cache as the kernels see it: pointers that change only when the tail's buffers move."""

from collections.abc import Sequence
from ctypes import c_int64

import numpy as np
import torch
from torch import Tensor

from ..kv.cache import LayerKV, RowCache
from ..model.model_config import ModelInfo
from .structs import RowStruct, SegmentStruct

__all__ = ["CacheView"]


class CacheView:
    """Pointers to the segments and the tail of one row's cache, in its first `layers` layers."""

    def __init__(self, cache: RowCache, info: ModelInfo, dtype: torch.dtype, layers: int):
        self._info = info
        self._layers = layers
        self._dtype = dtype
        self._count = len(cache.segments) + 1
        self._table = (SegmentStruct * (layers * self._count))()  # (layers, count): the tail is each layer's last
        self._lengths = (c_int64 * self._count)(*map(len, cache.segments), 0)
        self._positions = np.empty(0, dtype=np.int64)  # with room to spare
        self._entries = 0  # how many of them are filled in
        self._moves = -1  # the cache's counter when the tail's pointers were last read
        shared = [
            [_contiguous_by_head(layer, dtype) for layer in segment.layers[:layers]] for segment in cache.segments
        ]
        self._kept = shared  # keeps alive what the kernels point to
        for index, segment in enumerate(shared):
            for number, layer in enumerate(segment):
                self._table[number * self._count + index] = _segment(layer)

    def rows(self, ids: Sequence[int], cache: RowCache, positions: Sequence[int]) -> list[RowStruct]:
        """A structure for each new token behind the cache as it is now; makes room for the tokens' entries."""
        info, new = self._info, len(positions)
        heads, dim, _ = info.shapes[0]
        tail, used = cache.room_for(new, self._layers, heads, dim, self._dtype)
        if cache.moves != self._moves:
            self._moves = cache.moves
            for number, layer in enumerate(tail):
                self._table[number * self._count + self._count - 1] = _segment(layer)
        self._lengths[self._count - 1] = used
        known = self._all_positions(cache, positions) if any(info.windows) else None
        return [
            RowStruct(self._table, self._lengths, known, self._count, position, behind, token)
            for behind, (token, position) in enumerate(zip(ids, positions, strict=True))
        ]

    def _all_positions(self, cache: RowCache, positions: Sequence[int]) -> int:
        """The address of the positions of all entries and of the new tokens."""
        entries, new = len(cache), len(positions)
        if entries != self._entries or entries + new > len(self._positions):
            room = np.empty(entries + new + 64, dtype=np.int64)
            self._positions = np.concatenate([cache.positions.numpy(), room])
        self._positions[entries : entries + new] = positions
        self._entries = entries + new
        return self._positions.ctypes.data


def _segment(layer: LayerKV) -> SegmentStruct:
    keys, values = layer
    return SegmentStruct(keys.data_ptr(), values.data_ptr(), keys.stride(1), values.stride(1))


def _contiguous_by_head(layer: LayerKV, dtype: torch.dtype) -> LayerKV:
    """In the kernels' layout, in which a head's entries follow each other. The same tensors if nothing changes."""

    def contiguous(x: Tensor) -> Tensor:  # (1, kv_heads, entries, head_dim)
        x = x.to(dtype)
        return x if x.stride()[2:] == (x.shape[3], 1) else x.contiguous()

    return LayerKV(contiguous(layer.keys), contiguous(layer.values))
