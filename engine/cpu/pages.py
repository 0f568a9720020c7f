"""Memory for what is read from end to end at every step: in pages of two megabytes, where the system has them.

A CPU finds the place of a page in the memory before it reads it, which at four kilobytes a page takes a fifth of a
step and more.
"""

import mmap
from contextlib import suppress

import torch
from torch import Tensor

__all__ = ["LargePages"]

_PAGE = 2**21  # bytes
_AT_ONCE = 32 * _PAGE  # what nobody writes to is never really taken


class LargePages:
    """Hands out tensors that lie side by side, and stay as long as they are used."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.uint8)  # that is left of the newest pages

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """As `torch.empty`, on a line of the CPU's caches."""
        size = dtype.itemsize * torch.Size(shape).numel()
        whole = -(-size // 64) * 64
        if whole > len(self._room):
            self._room = _pages(max(_AT_ONCE, -(-whole // _PAGE) * _PAGE))
        taken, self._room = self._room[:size], self._room[whole:]
        return taken.view(dtype).view(shape)


def _pages(size: int) -> Tensor:
    """(size,) of uint8, at the beginning of a page."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # only Linux is asked for them
        return torch.empty(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    everything = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory
    start = -everything.data_ptr() % _PAGE
    return everything[start : start + size]
