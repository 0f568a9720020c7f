"""A row's tail on its way out of the device's memory and back, bit by bit the same.

From a GPU it goes into the host's memory. From the host's it goes into a file that has no name, in the folder for
temporary files, and vanishes with the process.
"""

import tempfile
from collections.abc import Sequence
from typing import IO

import torch
from torch import Tensor

from .kv import LayerKV

__all__ = ["SwappedTail"]


class SwappedTail:
    """The written entries of a tail's buffers, by layer (1, kv_heads, capacity, head_dim), kept elsewhere."""

    def __init__(self, buffers: Sequence[LayerKV], used: int):
        self._file: IO[bytes] | None = None
        self._used = used
        self._like = [(each.shape, each.dtype, each.device) for layer in buffers for each in layer]
        self._kept: list[Tensor] = []
        if not used:
            return
        written = (each[:, :, :used] for layer in buffers for each in layer)
        if any(each.device.type != "cpu" for layer in buffers for each in layer):
            self._kept = [each.to("cpu", copy=True) for each in written]
            return
        self._file = tempfile.TemporaryFile(prefix="cachegraph-kv-")  # noqa: SIM115  # stays open as long as this lives
        for each in written:
            self._file.write(each.contiguous().view(torch.uint8).numpy().data)

    def restore(self, capacity: int) -> list[LayerKV]:
        """Buffers with room for `capacity` positions that begin with what was kept; what was kept is given up."""
        tensors = []
        if self._file is not None:
            self._file.seek(0)
        for index, (shape, dtype, device) in enumerate(self._like):
            new = torch.empty((*shape[:2], capacity, shape[3]), dtype=dtype, device=device)
            if self._used:
                new[:, :, : self._used] = self._read(index)
            tensors.append(new)
        self.close()
        return [LayerKV(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)]

    def _read(self, index: int) -> Tensor:
        if self._file is None:
            return self._kept[index]
        (batch, heads, _, dim), dtype, _ = self._like[index]
        size = batch * heads * self._used * dim * dtype.itemsize
        return torch.frombuffer(bytearray(self._file.read(size)), dtype=dtype).reshape(batch, heads, self._used, dim)

    def close(self) -> None:
        """Give up what was kept."""
        if self._file is not None:
            self._file.close()
        self._kept = []

    __del__ = close  # of a row that was cancelled meanwhile
