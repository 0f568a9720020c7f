"""Rotates cached keys to other positions, all layers in one call (rope.h)."""

from collections.abc import Callable, Sequence
from ctypes import Structure, addressof, c_int64, c_void_p

import torch
from torch import Tensor

from .build import Kernels
from .layout import even_then_odd

__all__ = ["CPUKeyRotator", "contiguous_by_head"]

_TABLE = 1 << 13  # positions whose angles are computed once


class CPUKeyRotator:
    """`KeyRotator` for bfloat16 keys on the CPU, (1, kv_heads, positions, head_dim) by layer."""

    def __init__(self, kernels: Kernels):
        self._kernels = kernels
        self.unit = 2 * kernels.block

    def tables(self, compute: Callable[[Tensor], tuple[Tensor, Tensor]]) -> "CPUAngleTables":
        """Tables of what `compute` gives at positions, (positions,): cosines and sines, (1, positions, head_dim)."""
        return CPUAngleTables(compute, self._kernels.block)

    def table(self, cosines_and_sines: tuple[Tensor, Tensor]) -> Tensor:
        """One such table, (positions, 2, head_dim), of cosines and sines, (1, positions, head_dim) each."""
        return _in_kernel_order(cosines_and_sines, self._kernels.block)

    def takes(self, keys: Sequence[Tensor]) -> bool:
        """Layers alike in shape, of one row, without a gradient, head_dim a multiple of `unit`."""
        return bool(keys) and all(map(self._fits, keys)) and len({tensor.shape for tensor in keys}) == 1

    def _fits(self, keys: Tensor) -> bool:
        plain = keys.device.type == "cpu" and keys.dtype == torch.bfloat16 and not keys.requires_grad
        return plain and keys.shape[0] == 1 and keys.shape[3] % self.unit == 0

    def rotate(self, keys: Sequence[Tensor], tables: Sequence[Tensor]) -> list[Tensor]:
        """Copies of the layers' keys, (1, kv_heads, positions, head_dim) each, rotated by their tables."""
        _, heads, positions, dim = keys[0].shape
        contiguous = [contiguous_by_head(tensor) for tensor in keys]
        rotated = [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in keys]
        layers = (_RotationStruct * len(keys))(
            *(
                _RotationStruct(old.data_ptr(), old.stride(1), new.data_ptr(), table.data_ptr())
                for old, new, table in zip(contiguous, rotated, tables, strict=True)
            )
        )
        self._kernels.rotate(addressof(layers), len(keys), heads, positions, dim, torch.get_num_threads())
        return rotated


class CPUAngleTables:
    """Cosines and sines by position in the kernels' order; those of the first positions are computed once."""

    def __init__(self, compute: Callable[[Tensor], tuple[Tensor, Tensor]], block: int):
        self._compute = compute
        self._block = block
        self._table: Tensor | None = None  # from position 0 on

    def at(self, positions: Tensor) -> Tensor:
        """(positions, 2, head_dim) of float32."""
        distances, table = positions.abs(), self._table  # another thread may replace it by a shorter one
        furthest = int(distances.max())
        if furthest >= _TABLE:
            return self._made(positions)
        if table is None or len(table) <= furthest:
            table = self._table = self._made(torch.arange(min(_TABLE, 2 * furthest + 256)))
        angles = table[distances]
        if int(positions.min()) < 0:
            angles[:, 1] *= positions.sign()[:, None]
        return angles

    def _made(self, positions: Tensor) -> Tensor:
        return _in_kernel_order(self._compute(positions), self._block)


def _in_kernel_order(tables: tuple[Tensor, Tensor], block: int) -> Tensor:
    """Cosines and sines, (1, positions, head_dim) each, as the kernels read them: (positions, 2, head_dim)."""
    return even_then_odd(torch.cat(tables).transpose(0, 1).float(), block).contiguous()


class _RotationStruct(Structure):
    _fields_ = [("at", c_void_p), ("stride", c_int64), ("to", c_void_p), ("table", c_void_p)]


def contiguous_by_head(x: Tensor) -> Tensor:
    """(1, kv_heads, positions, head_dim) in which the positions of a head follow each other."""
    return x if x.stride(3) == 1 and x.stride(2) == x.shape[3] else x.contiguous()
