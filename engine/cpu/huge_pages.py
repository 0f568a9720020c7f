"""Memory for what is read from end to end at every step: in pages of two megabytes, where the system has them.

A CPU finds the place of a page in the memory before it reads it, which at four kilobytes a page takes a fifth of a
step and more.
"""

import ctypes
import mmap
import re
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["FilePages", "LargePages"]

_PAGE = 2**21  # bytes
_AT_ONCE = 32 * _PAGE  # pages that are never written take no memory


class LargePages:
    """Hands out tensors that lie side by side, and stay as long as they are used."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.uint8)  # that is left of the newest pages

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """As `torch.empty(shape)`, aligned to a line of the CPU's caches."""
        size = dtype.itemsize * torch.Size(shape).numel()
        aligned = -(-size // 64) * 64
        if aligned > len(self._room):
            self._room = _pages(max(_AT_ONCE, -(-aligned // _PAGE) * _PAGE))
        taken, self._room = self._room[:size], self._room[aligned:]
        return taken.view(dtype).view(shape)


class FilePages:
    """The memory of this process that shows files, unchanged, as it is now: weights are mapped from theirs.

    What is released comes back from the file, or from the system's copy of it, when it is read again.
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        with suppress(OSError, AttributeError):
            self._madvise = ctypes.CDLL(None).madvise
            self._madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            self._ranges = _unchanged(Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace"))

    def release(self, tensor: Tensor) -> None:
        """Return the tensor's whole pages to the system if they are mapped from a file; its shape does not matter."""
        start, size = tensor.data_ptr(), tensor.nbytes
        if any(first <= start and start + size <= last for first, last in self._ranges):
            begin = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            length = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE - begin
            if length > 0:
                self._madvise(begin, length, mmap.MADV_DONTNEED)


def _unchanged(smaps: str) -> list[tuple[int, int]]:
    """The mappings of files of which no page was written to, [first, last)."""
    found = []
    for part in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE):
        head = part.split("\n", 1)[0].split(maxsplit=5)
        facts = dict(re.findall(r"^(\w+): +(\d+) kB$", part, re.MULTILINE))
        own = [facts.get(name, "?") for name in ("Anonymous", "Swap")]
        if len(head) == 6 and head[4] != "0" and head[1].endswith("p") and own == ["0", "0"]:
            first, last = head[0].split("-")
            found.append((int(first, 16), int(last, 16)))
    return found


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
