"""Moves a waiting row's tail and recurrent state out of the device's memory and back, bit by bit the same.

From a GPU they move to the host's memory; from the host's to a file without a name in the folder for temporary files,
which vanishes with the process.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import torch
from torch import Tensor

from ..kv.cache import LayerKV
from ..kv.recurrent_state import RecurrentState

__all__ = ["SwappedState", "SwappedTail"]


class _Offloaded:
    """Tensors that were moved out of the device's memory, and come back in their order."""

    def __init__(self, tensors: Iterable[Tensor]):
        tensors = list(tensors)
        self._like = [(tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in tensors]
        self._kept: list[Tensor] = []
        self._file: IO[bytes] | None = None
        if any(tensor.device.type != "cpu" for tensor in tensors):
            self._kept = [tensor.to("cpu", copy=True) for tensor in tensors]
        elif tensors:
            self._file = tempfile.TemporaryFile(prefix="cachegraph-kv-")  # noqa: SIM115  # open as long as this lives
            for tensor in tensors:
                self._file.write(tensor.contiguous().view(torch.uint8).numpy().data)

    def back(self) -> Iterator[Tensor]:
        """The tensors, one after the other, on their devices."""
        if self._file is not None:
            self._file.seek(0)
        for index, (shape, dtype, device) in enumerate(self._like):
            if self._file is None:
                yield self._kept[index].to(device)
            else:
                raw = bytearray(self._file.read(math.prod(shape) * dtype.itemsize))
                yield torch.frombuffer(raw, dtype=dtype).reshape(shape)

    def close(self) -> None:
        """Give up what was kept."""
        if self._file is not None:
            self._file.close()
        self._kept = []

    __del__ = close  # of a row that was cancelled while it waited


class SwappedTail:
    """The written entries of a tail's buffers, by layer (1, kv_heads, capacity, head_dim), kept elsewhere."""

    def __init__(self, buffers: Sequence[LayerKV], used: int):
        self._used = used
        self._like = [(tensor.shape, tensor.dtype, tensor.device) for layer in buffers for tensor in layer]
        self._written = _Offloaded(tensor[:, :, :used] for layer in buffers for tensor in layer if used)

    def restore(self, capacity: int) -> list[LayerKV]:
        """New buffers with room for `capacity` positions that begin with the stored entries; frees the stored copy."""
        tensors, written = [], self._written.back()
        for shape, dtype, device in self._like:
            new = torch.empty((*shape[:2], capacity, shape[3]), dtype=dtype, device=device)
            if self._used:
                new[:, :, : self._used] = next(written)
            tensors.append(new)
        self.close()
        return [LayerKV(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)]

    def close(self) -> None:
        """Give up what was kept."""
        self._written.close()


class SwappedState:
    """A row's recurrent state, kept elsewhere."""

    def __init__(self, state: RecurrentState):
        self._like = state.map(lambda tensor: torch.empty_like(tensor, device="meta"))
        self._tensors = _Offloaded(state.tensors())

    def restore(self) -> RecurrentState:
        """The same state on its devices; frees the stored copy."""
        back = self._tensors.back()
        state = self._like.map(lambda _: next(back))
        self._tensors.close()
        return state
