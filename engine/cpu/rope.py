"""Turning cached keys to other positions on a CPU, all layers in one call (rope.h)."""

from collections.abc import Callable, Sequence
from ctypes import Structure, addressof, c_int64, c_void_p

import torch
from torch import Tensor

from .build import Kernels, kernels
from .decoder import placed

__all__ = ["KEPT", "Angles", "by_heads", "laid_out", "turned"]

KEPT = 1 << 13  # positions


class Angles:
    """Cosines and sines by position, as the kernels read them: those near 0 are computed once.

    `compute` gives both at positions, (1, positions, head_dim) each.
    """

    def __init__(self, compute: Callable[[Tensor], tuple[Tensor, Tensor]], block: int):
        self._compute = compute
        self._block = block
        self._table: Tensor | None = None  # from position 0 on

    def at(self, positions: Tensor) -> Tensor:
        """(positions, 2, head_dim) of float32, each element at its place."""
        far, table = positions.abs(), self._table  # other threads may put a shorter one in its place
        furthest = int(far.max())
        if furthest >= KEPT:
            return self._made(positions)
        if table is None or len(table) <= furthest:
            table = self._table = self._made(torch.arange(min(KEPT, 2 * furthest + 256)))
        angles = table[far]
        if int(positions.min()) < 0:
            angles[:, 1] *= positions.sign()[:, None]
        return angles

    def _made(self, positions: Tensor) -> Tensor:
        return laid_out(self._compute(positions), self._block)


def laid_out(tables: tuple[Tensor, Tensor], block: int) -> Tensor:
    """Cosines and sines, (1, positions, head_dim) each, as the kernels read them: (positions, 2, head_dim)."""
    return placed(torch.cat(tables).transpose(0, 1).float(), block).contiguous()


class _Turned(Structure):
    _fields_ = [("at", c_void_p), ("stride", c_int64), ("to", c_void_p), ("table", c_void_p)]


def turned(keys: Sequence[Tensor], tables: Sequence[Tensor]) -> list[Tensor] | None:
    """Layers' keys, (1, kv_heads, positions, head_dim), turned by halves, each by the angles of its table, which is of
    `Angles`. None where the kernels can't: then nothing was done.
    """
    found = kernels()
    if not keys or not isinstance(found, Kernels) or not all(_is_fit(each, found.block) for each in keys):
        return None
    if len({each.shape for each in keys}) > 1:
        return None
    _, heads, positions, dim = keys[0].shape
    given, made = [by_heads(each) for each in keys], [torch.empty(each.shape, dtype=each.dtype) for each in keys]
    layers = (_Turned * len(keys))(
        *(
            _Turned(old.data_ptr(), old.stride(1), new.data_ptr(), table.data_ptr())
            for old, new, table in zip(given, made, tables, strict=True)
        )
    )
    found.turn(addressof(layers), len(keys), heads, positions, dim, torch.get_num_threads())
    return made


def by_heads(x: Tensor) -> Tensor:
    """Each head's positions behind each other."""
    return x if x.stride(3) == 1 and x.stride(2) == x.shape[3] else x.contiguous()


def _is_fit(keys: Tensor, block: int) -> bool:
    plain = keys.device.type == "cpu" and keys.dtype == torch.bfloat16 and not keys.requires_grad
    return plain and keys.shape[0] == 1 and keys.shape[3] % (2 * block) == 0
