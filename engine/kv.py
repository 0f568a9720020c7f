"""KV caches as values: what one row has read, layer by layer.

One axis order everywhere: (batch, kv_heads, positions, head_dim), with a batch of 1, since rows are never padded to
each other. A `KV` is frozen and may be shared by any number of rows; a `RowCache` reads shared `KV`s in front and
writes behind them into a tail of its own. So a document that ten rows continue from is held once, and nobody can
change what another reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["KV", "LayerKV", "RowCache", "concat"]


class LayerKV(NamedTuple):
    """One layer's keys (after RoPE) and values, each (1, kv_heads, positions, head_dim)."""

    keys: Tensor
    values: Tensor

    def select(self, index: "slice | Tensor") -> "LayerKV":
        """Those positions alone; a slice shares memory, an index tensor copies."""
        return LayerKV(self.keys[:, :, index], self.values[:, :, index])


@dataclass(frozen=True, eq=False)
class KV:
    """All layers' keys and values of one stretch of one row, and the RoPE position of each entry."""

    layers: tuple[LayerKV, ...]
    positions: Tensor  # (positions,) int64, on the CPU, ascending

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def nbytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def select(self, index: "slice | Tensor") -> "KV":
        """Those entries alone; a slice shares memory, an index tensor copies."""
        layers = tuple(layer.select(index) for layer in self.layers)
        return KV(layers, self.positions[index.cpu() if isinstance(index, Tensor) else index])

    def to(self, device: torch.device, dtype: torch.dtype) -> "KV":
        """On another device or in another dtype; itself where nothing changes."""
        layers = tuple(LayerKV(k.to(device, dtype), v.to(device, dtype)) for k, v in self.layers)
        return (
            self
            if all(a is b for old, new in zip(self.layers, layers, strict=True) for a, b in zip(old, new, strict=True))
            else KV(layers, self.positions)
        )


def concat(parts: Sequence[KV]) -> KV:
    """One KV out of several, in order; the part itself where there is but one."""
    if len(parts) == 1:
        return parts[0]
    layers = tuple(
        LayerKV(
            torch.cat([layer.keys for layer in layers], dim=2), torch.cat([layer.values for layer in layers], dim=2)
        )
        for layers in zip(*(part.layers for part in parts), strict=True)
    )
    return KV(layers, torch.cat([part.positions for part in parts]))


class RowCache:
    """What one running row attends to: shared segments in front, then a tail that it alone writes.

    The tail grows by doubling, so decoding does not copy it at every step.
    """

    def __init__(self, segments: Sequence[KV] = ()):
        self.segments = [segment for segment in segments if len(segment)]
        self._tail: list[LayerKV] = []  # buffers with room to spare
        self._tail_positions = torch.empty(0, dtype=torch.int64)
        self._used = 0  # entries of the tail that are written in every layer

    def __len__(self) -> int:
        return sum(map(len, self.segments)) + self._used

    @property
    def next_position(self) -> int:
        """The RoPE position after the last entry."""
        last = (
            self._tail_positions[: self._used]
            if self._used
            else (self.segments[-1].positions if self.segments else None)
        )
        return int(last[-1]) + 1 if last is not None else 0

    @property
    def positions(self) -> Tensor:
        """(positions,) of all entries."""
        return torch.cat([*(segment.positions for segment in self.segments), self._tail_positions[: self._used]])

    def reserve(self, positions: Tensor) -> None:
        """Announce the entries that the coming forward pass appends, in every layer, at these positions."""
        self._tail_positions = torch.cat([self._tail_positions[: self._used], positions])

    def append(self, layer: int, keys: Tensor, values: Tensor) -> LayerKV:
        """Write one layer's new entries, (1, kv_heads, new, head_dim); returns all that the layer now attends to."""
        if layer == len(self._tail):
            self._tail.append(_room_for(LayerKV(keys, values), 0, keys.shape[2]))
        start, end = self._used, self._used + keys.shape[2]
        if end > self._tail[layer].keys.shape[2]:
            self._tail[layer] = _room_for(self._tail[layer], start, end)
        buffer = self._tail[layer]
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):  # training: no writes in place
            buffer = self._tail[layer] = LayerKV(
                torch.cat([buffer.keys[:, :, :start], keys], 2), torch.cat([buffer.values[:, :, :start], values], 2)
            )
        else:
            buffer.keys[:, :, start:end] = keys
            buffer.values[:, :, start:end] = values
        tail = LayerKV(buffer.keys[:, :, :end], buffer.values[:, :, :end])
        if not self.segments:
            return tail
        parts = [segment.layers[layer] for segment in self.segments] + [tail]
        return LayerKV(torch.cat([part.keys for part in parts], 2), torch.cat([part.values for part in parts], 2))

    def room_for_one(self, layers: int, heads: int, dim: int, dtype: torch.dtype) -> tuple[list[LayerKV], int]:
        """The tail's buffers on the CPU, each (1, heads, room, dim), and how many entries are written.

        For code that writes one more entry into every layer by itself; `reserve` and `commit` then make it count.
        """
        if not self._tail:
            empty = torch.empty(1, heads, 0, dim, dtype=dtype)
            self._tail = [LayerKV(empty, empty)] * layers
        if self._used == self._tail[0].keys.shape[2]:
            self._tail = [_room_for(buffer, self._used, self._used + 1) for buffer in self._tail]
        return self._tail, self._used

    def commit(self) -> None:
        """The forward pass is over: the reserved entries count."""
        self._used = len(self._tail_positions)

    def tail(self) -> KV:
        """What this row itself computed; shares memory, and later appends leave it as it is."""
        used = self._used
        layers = tuple(LayerKV(k[:, :, :used], v[:, :, :used]) for k, v in self._tail)
        return KV(layers, self._tail_positions[:used])

    def freeze(self) -> tuple[KV, ...]:
        """The segments that another row may continue from, sharing all memory with this one."""
        return (*self.segments, self.tail()) if self._used else tuple(self.segments)


def _room_for(buffer: LayerKV, used: int, needed: int) -> LayerKV:
    def grow(old: Tensor) -> Tensor:
        batch, heads, _, dim = old.shape
        new = old.new_empty(batch, heads, max(needed + 32, 2 * used), dim)
        new[:, :, :used] = old[:, :, :used]
        return new

    return LayerKV(grow(buffer.keys), grow(buffer.values))
