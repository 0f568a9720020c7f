"""KV caches: what one row has read, layer by layer.

The axis order is (batch, kv_heads, positions, head_dim) everywhere, with a batch of 1, since rows are never padded to
each other. Layers may differ in KV heads and head_dim, and a layer's keys from its values in head_dim. A `KV` has only
the layers that keep entries of their own; others share those, or have none. A `KV` is frozen, and any number of rows
may share it. A `RowCache` reads shared `KV`s in front and writes its own tail behind them. So a document that ten rows
continue from is held once, and no row can change what another reads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..torch_threads import for_small_operations
from .rope_by_length import MIXED

if TYPE_CHECKING:
    from .recurrent_state import RecurrentState

__all__ = ["BLOCK", "KV", "LayerKV", "RowCache", "concat"]

BLOCK = 32  # positions: tails have room for a whole number of these
_TOGETHER = 2**26  # bytes of a tail that moves at once; of a larger one no second copy of all layers is made


class LayerKV(NamedTuple):
    """One layer's keys (after RoPE) and values, each (1, kv_heads, positions, head_dim)."""

    keys: Tensor
    values: Tensor

    def select(self, index: "slice | Tensor") -> "LayerKV":
        """Those positions alone; a slice shares memory, an index tensor, (selected,) int64, copies."""
        return LayerKV(self.keys[:, :, index], self.values[:, :, index])


@dataclass(frozen=True, eq=False, repr=False)
class KV:
    """All layers' keys and values of one stretch of one row, and the RoPE position of each entry.

    `layers` are those that keep KV, each (1, kv_heads, positions, head_dim). Where others keep a recurrent state,
    `state` is it behind the last entry, of all that the row has read from position 0 on. A part of the entries has
    none.
    """

    layers: tuple[LayerKV, ...]
    positions: Tensor  # (positions,) int64, on the CPU, ascending
    factors: int = 0  # which of its model's RoPE frequencies its keys have, where those depend on a row's length
    state: "RecurrentState | None" = None

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:  # asyncio asks it of whatever a task returns, and numbers would take a tenth of a second
        return f"KV({len(self.layers)} layers, {len(self)} positions)"

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds in the model's memory: keys, values, (1, kv_heads, positions, head_dim), then a state's."""
        for layer in self.layers:
            yield from layer
        if self.state is not None:
            yield from self.state.tensors()

    def select(self, index: "slice | Tensor") -> "KV":
        """Those entries alone, without a state; a slice shares memory, an index tensor, (selected,) int64, copies."""
        layers = tuple(layer.select(index) for layer in self.layers)
        return KV(layers, self.positions[index.cpu() if isinstance(index, Tensor) else index], self.factors)

    def first(self, count: int) -> "KV":
        """The first `count` entries; all of them, with the state, where there are no more."""
        return self if count == len(self) else self.select(slice(0, count))

    def leading_layers(self, count: int) -> "KV":
        """The first `count` layers of all entries, without a state; itself where it has no more layers."""
        if count >= len(self.layers):
            return self
        return KV(self.layers[:count], self.positions, self.factors)

    def split(self, at: int) -> "tuple[KV, KV]":
        """The first `at` entries and the others, sharing memory; the state stays behind the last one."""
        front, back = self.select(slice(0, at)), self.select(slice(at, None))
        return front, replace(back, state=self.state)

    def to(self, devices: Sequence[torch.device], dtype: torch.dtype) -> "KV":
        """Each layer on its device, in this dtype; itself where nothing changes."""
        layers = tuple(
            LayerKV(k.to(device, dtype), v.to(device, dtype))
            for (k, v), device in zip(self.layers, devices, strict=True)
        )
        return (
            self
            if all(a is b for old, new in zip(self.layers, layers, strict=True) for a, b in zip(old, new, strict=True))
            else KV(layers, self.positions, self.factors, self.state)
        )


def concat(parts: Sequence[KV]) -> KV:
    """Join KVs along the positions of their layers, (1, kv_heads, positions, head_dim); one part is returned as is."""
    if len(parts) == 1:
        return parts[0]
    layers = tuple(
        LayerKV(
            torch.cat([layer.keys for layer in layers], dim=2), torch.cat([layer.values for layer in layers], dim=2)
        )
        for layers in zip(*(part.layers for part in parts), strict=True)
    )
    (factors, *others) = {part.factors for part in parts}
    positions = torch.cat([part.positions for part in parts])
    return KV(layers, positions, MIXED if others else factors, parts[-1].state)


class RowCache:
    """What one running row attends to: shared segments in front, then a tail that it alone writes.

    Every layer's keys and values are (1, kv_heads, entries, head_dim).

    The tail's buffers have room to spare, so decoding does not copy them at every step. They grow by a quarter. Of a
    small tail, all keys that `room_for` gives are parts of one buffer, and all values of another, so each moves in one
    copy, and a rotation that shares the values keeps no keys alive.
    """

    def __init__(self, segments: Sequence[KV] = ()):
        self.segments: list[KV] = []
        self.state: RecurrentState | None = None  # behind the last entry, where the model keeps one
        self._state_before: tuple[int, RecurrentState | None] = (0, None)  # how much of the tail was used then
        self._kept: list[tuple[int, RecurrentState]] = []  # the same, where others may want to continue
        self.continue_from(segments)
        self.capacity = 0  # positions that the tail's buffers have room for, or will have when next written
        self.factors = 0  # of the tail's keys, as a KV's
        self.moves = 0  # how often buffers of the tail have moved
        self._tail: list[LayerKV] = []  # buffers, by layer (1, kv_heads, capacity, head_dim)
        self._whole: LayerKV | None = None  # (layers, 1, kv_heads, capacity, head_dim) each, if they are parts of one
        self._places = np.empty(0, dtype=np.int64)  # RoPE positions of the tail's entries, and room to spare
        self._used = 0  # entries of the tail that every layer has
        self._reserved = 0  # the same with the entries of the running pass

    def __len__(self) -> int:
        return sum(map(len, self.segments)) + self._used

    @property
    def next_position(self) -> int:
        """The RoPE position after the last entry."""
        if self._used:
            return int(self._places[self._used - 1]) + 1
        return int(self.segments[-1].positions[-1]) + 1 if self.segments else 0

    @property
    def positions(self) -> Tensor:
        """(positions,) of all entries."""
        return torch.cat([*(segment.positions for segment in self.segments), self._tail_positions()])

    def _tail_positions(self) -> Tensor:
        return torch.from_numpy(self._places[: self._used])

    def continue_from(self, segments: Sequence[KV]) -> None:
        """Continue from these segments; nothing may be written yet."""
        self.segments = [segment for segment in segments if len(segment)]
        state = self.segments[-1].state if self.segments else None
        # A state of another row, or of a part of this one, does not follow from these entries.
        self.state = state if state is not None and state.length == sum(map(len, self.segments)) else None
        self._state_before = (0, self.state)

    def put_state(self, state: "RecurrentState | None") -> None:
        """Set the state behind the committed entries; None while it is swapped out."""
        self.state = state
        if state is None:
            self._state_before = (0, None)

    # Room

    def capacity_for(self, new: int) -> int:
        """What the capacity has to be for `new` more entries."""
        needed = self._used + new
        if needed <= self.capacity:
            return self.capacity
        return -(-max(needed, self._used + self._used // 4) // BLOCK) * BLOCK

    def make_room(self, new: int) -> None:
        """Let the tail have room for `new` more entries; a buffer is made, or moved, when its layer is next written."""
        self.capacity = self.capacity_for(new)

    @property
    def used(self) -> int:
        """How many entries of the tail are written."""
        return self._used

    def _with_room(self, buffer: LayerKV) -> LayerKV:
        if buffer.keys.shape[2] >= self.capacity:
            return buffer
        self.moves += 1
        self._whole = None
        return LayerKV(*(_moved(tensor, self._used, self.capacity) for tensor in buffer))

    # One forward pass: entries are reserved, written layer by layer, committed

    def reserve(self, positions: Sequence[int] | Tensor) -> None:
        """Announce the entries that the coming forward pass appends, in every layer, at these (new,) positions."""
        self._reserved = self._used + len(positions)
        if self._reserved > len(self._places):
            more = np.empty(max(self._reserved, len(self._places)) + BLOCK, dtype=np.int64)
            self._places = np.concatenate([self._places[: self._used], more])  # what was handed out stays as it is
        at = positions.numpy() if isinstance(positions, Tensor) else positions
        self._places[self._used : self._reserved] = at
        self.make_room(len(positions))

    def append(self, layer: int, keys: Tensor, values: Tensor) -> LayerKV:
        """Write one layer's new entries, (1, kv_heads, new, head_dim); returns all that the layer now attends to."""
        if layer == len(self._tail):
            self._tail.append(LayerKV(keys[:, :, :0], values[:, :, :0]))
        start, end = self._used, self._used + keys.shape[2]
        buffer = self._tail[layer] = self._with_room(self._tail[layer])
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):  # training: no writes in place
            self._whole = None
            buffer = self._tail[layer] = LayerKV(
                torch.cat([buffer.keys[:, :, :start], keys], 2), torch.cat([buffer.values[:, :, :start], values], 2)
            )
        else:
            buffer.keys[:, :, start:end] = keys
            buffer.values[:, :, start:end] = values
        return self.entries(layer)

    def entries(self, layer: int) -> LayerKV:
        """All that a layer attends to, (1, kv_heads, entries, width) each, those of a forward pass under way too."""
        tail = LayerKV(*(tensor[:, :, : self._reserved] for tensor in self._tail[layer]))
        if not self.segments:
            return tail
        parts = [segment.layers[layer] for segment in self.segments] + [tail]
        return LayerKV(torch.cat([part.keys for part in parts], 2), torch.cat([part.values for part in parts], 2))

    def room_for(
        self, new: int, layers: int, heads: int, dim: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> tuple[list[LayerKV], int]:
        """The tail's buffers, each (1, heads, room, dim), and how many entries are written.

        For code that writes new entries into every layer by itself; `reserve` and `commit` then make them count.
        """
        self.make_room(new)
        if not self._tail:
            empty = torch.empty(1, heads, 0, dim, dtype=dtype, device=device)
            self._tail = [LayerKV(empty, empty)] * layers
        if self._tail[0].keys.shape[2] < self.capacity:
            if 2 * layers * heads * self.capacity * dim * dtype.itemsize <= _TOGETHER:
                self._move(*(tensor.new_empty(layers, 1, heads, self.capacity, dim) for tensor in self._tail[0]))
            else:
                self._tail = [self._with_room(buffer) for buffer in self._tail]
        return self._tail, self._used

    def _move(self, keys: Tensor, values: Tensor) -> None:
        """Into these, (layers, 1, kv_heads, capacity, head_dim) each."""
        used, stacked = self._used, LayerKV(keys, values)
        tail = [LayerKV(*pair) for pair in zip(*(tensor.unbind() for tensor in stacked), strict=True)]
        if self._whole is not None:
            with for_small_operations(stacked):
                for new, old in zip(stacked, self._whole, strict=True):
                    new[:, :, :, :used] = old[:, :, :, :used]
        elif used:
            for layer, before in zip(tail, self._tail, strict=True):
                for new, old in zip(layer, before, strict=True):
                    new[:, :, :used] = old[:, :, :used]
        self._tail, self._whole = tail, stacked
        self.moves += 1

    def got_factors(self, factors: int) -> None:
        """The entries of the coming pass have keys of these RoPE frequencies."""
        self.factors = factors if not self._used else self.factors if self.factors == factors else MIXED

    def commit(self) -> None:
        """End the forward pass: the reserved entries count from now on."""
        self._state_before = (self._used, self.state)
        self._used = self._reserved

    def take_back(self, used: int) -> None:
        """Undo the last pass: the tail has `used` entries again."""
        if used != self._used:
            assert self.state is None or self._state_before[0] == used
            self.state = self._state_before[1]
        self._used = used

    def tail(self) -> KV:
        """The KV that this row itself computed. Shares memory; later appends don't change it."""
        used = self._used
        layers = tuple(LayerKV(k[:, :, :used], v[:, :, :used]) for k, v in self._tail)
        return KV(layers, self._tail_positions(), self.factors, self.state)

    def freeze(self) -> tuple[KV, ...]:
        """The segments that another row may continue from, sharing all memory with this one."""
        return (*self.segments, *self._tail_parts()) if self._used else tuple(self.segments)

    def _tail_parts(self) -> list[KV]:
        """The tail, cut where a state was kept: a row can continue there."""
        rest, parts, start = self.tail(), list[KV](), 0
        for used, state in self._kept:
            if start < used < self._used:
                part, rest = rest.split(used - start)
                parts.append(replace(part, state=state))
                start = used
        return [*parts, rest]

    def keep_state(self) -> None:
        """Keep the state behind the last entry, so that others can continue from here: it can't be cut out later."""
        if self.state is not None:
            self.state = self.state.compact()
            self._kept.append((self._used, self.state))

    # A waiting row may be swapped out

    def take_tail(self) -> list[LayerKV]:
        """Give away the tail's buffers, until `put_tail`."""
        taken, self._tail, self._whole = self._tail, [], None
        return taken

    def put_tail(self, buffers: list[LayerKV]) -> None:
        """Buffers with the same entries written, and room for `capacity`."""
        self._tail = buffers
        self.moves += 1


def _moved(old: Tensor, used: int, capacity: int) -> Tensor:
    new = old.new_empty(*old.shape[:2], capacity, old.shape[3])
    new[:, :, :used] = old[:, :, :used]
    return new
