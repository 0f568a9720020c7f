"""Where the rows of a step find their caches: addresses, strides and lengths, in the GPU's memory."""

from collections.abc import Sequence
from itertools import accumulate, count
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..kv.cache import LayerKV, RowCache
from ..model.model_config import ModelInfo
from ..transfer import to_device

__all__ = ["MOST_ROWS", "POSITION", "TOKEN", "Tables"]

MOST_ROWS = 64
POSITION, TOKEN = 3, 4  # of a row; kernels.py says what else there is
_FIELDS = 8  # of a segment
_NOBODY = [0, 1, 0, 0, 0, 0]  # a row that reads the empty segment
_UNIT = 16  # bytes that are loaded at once
_numbering = count()  # of views


class Tables:
    """`rows`: (6, most rows) and `segments`: (layers, room, 8), both of int64, as kernels.py has them.

    The first segment is empty, for the unused rows of a step.
    """

    def __init__(self, network: Any, info: ModelInfo, device: torch.device):
        self.rows = torch.zeros(6, MOST_ROWS, dtype=torch.int64, device=device)
        self.segments = torch.zeros(info.layers, 2 * MOST_ROWS, _FIELDS, dtype=torch.int64, device=device)
        self.dtype: torch.dtype = network.dtype  # of the caches that are shown
        self._info = info
        self._device = device
        self._views: WeakKeyDictionary[RowCache, _View] = WeakKeyDictionary()
        self._shown: list[tuple[int, int]] = []  # by row of the segments as they are now: its view, and its version

    def show(self, tokens: Sequence[int] | Tensor, caches: Sequence[RowCache], positions: Sequence[int]) -> bool:
        """Let the next step read these tokens, (rows,), each behind its cache. True: the segments are elsewhere now."""
        views = [self._view(cache) for cache in caches]
        used = [view.look(cache) for view, cache in zip(views, caches, strict=True)]
        moved = self._show_segments(views)
        counts = [view.count for view in views]
        firsts = list(accumulate(counts, initial=1))[:-1]
        known = [0] * len(views) if isinstance(tokens, Tensor) else tokens
        entries = [len(cache) + 1 for cache in caches]
        numbers = [list(row) for row in zip(firsts, counts, used, positions, known, entries, strict=True)]
        numbers += [_NOBODY] * (MOST_ROWS - len(views))
        self.rows.copy_(to_device(numbers, torch.int64, self._device).T)
        if isinstance(tokens, Tensor):
            self.rows[TOKEN, : len(views)] = tokens.clamp_min(0)  # -1 where there was none to choose
        return moved

    def _view(self, cache: RowCache) -> "_View":
        view = self._views.get(cache)
        if view is None:
            if read := cache.freeze():
                self.dtype = read[-1].layers[0].keys.dtype
            view = self._views[cache] = _View(cache, self._info, self.dtype, self._device)
        return view

    def _show_segments(self, views: "list[_View]") -> bool:
        now = [(view.number, view.version) for view in views]
        if now == self._shown:
            return False
        self._shown = now
        numbers = torch.cat([view.numbers for view in views], dim=1)  # (layers, segments, 8)
        behind = 1 + numbers.shape[1]
        moved = behind > self.segments.shape[1]
        if moved:
            self.segments = self.segments.new_zeros(self._info.layers, 2 * behind, _FIELDS)
        if self._device.type == "cuda":
            numbers = numbers.pin_memory()
        self.segments[:, 1:behind].copy_(numbers, non_blocking=True)
        return moved


class _View:
    """One row's cache in numbers, (layers, segments, 8). Those of its tail, the last, change when that moves."""

    def __init__(self, cache: RowCache, info: ModelInfo, dtype: torch.dtype, device: torch.device):
        self.number = next(_numbering)
        self.version = 0
        self.count = len(cache.segments) + 1
        self._info = info
        self._dtype = dtype
        self._device = device
        self._windowed = any(info.windows)
        self._moves = -1  # the cache's, when its tail was last looked up
        self._known = 0  # entries of the tail whose positions are in `_places`
        self._places = torch.empty(0, dtype=torch.int64, device=device)
        self._kept: list[object] = []  # as long as the numbers point to it
        self.numbers = torch.zeros(info.layers, self.count, _FIELDS, dtype=torch.int64)
        for index, segment in enumerate(cache.segments):
            layers = [_laid_out(layer, dtype) for layer in segment.layers]
            places = segment.positions.to(device) if self._windowed else self._places
            self._kept += [layers, places]
            self._write(index, layers, places)

    def look(self, cache: RowCache) -> int:
        """Give the tail room for a new entry, and return how many it has."""
        heads, dim, _ = self._info.shapes[0]
        tail, used = cache.room_for(1, self._info.layers, heads, dim, self._dtype, self._device)
        if cache.moves != self._moves:
            self._moves, self._known = cache.moves, -1
            self.version += 1
            if self._windowed:
                self._places = torch.empty(tail[0].keys.shape[2], dtype=torch.int64, device=self._device)
            self._write(self.count - 1, tail, self._places)
        if self._windowed and used != self._known:
            self._places[:used] = cache.tail().positions.to(self._device)
        self._known = used + 1  # the step itself writes the next one
        return used

    def _write(self, index: int, layers: Sequence[LayerKV], places: Tensor) -> None:
        self.numbers[:, index] = torch.tensor([_numbers(layer, places) for layer in layers])


def _numbers(layer: LayerKV, places: Tensor) -> list[int]:
    keys, values = layer
    strides = [keys.stride(1), keys.stride(2), values.stride(1), values.stride(2)]
    return [keys.data_ptr(), values.data_ptr(), *strides, keys.shape[2], places.data_ptr()]


def _laid_out(layer: LayerKV, dtype: torch.dtype) -> LayerKV:
    """As the kernels read it: whole units of memory. Itself where nothing changes."""

    def lay_out(x: Tensor) -> Tensor:  # (1, kv_heads, entries, head_dim)
        x = x.to(dtype)
        even = x.data_ptr() % _UNIT == 0 and all(step * x.element_size() % _UNIT == 0 for step in x.stride()[1:3])
        return x if even and x.stride(3) == 1 else x.clone(memory_format=torch.contiguous_format)

    return LayerKV(lay_out(layer.keys), lay_out(layer.values))
