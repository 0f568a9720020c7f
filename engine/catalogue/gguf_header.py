"""Check the header of a GGUF file before a library reads it: every length in it must fit the file.

The gguf library follows lengths without such a check, and makes objects of each item: a header of a hundred bytes can
ask it for more memory than any machine has.
"""

import struct
from mmap import ACCESS_READ, mmap
from pathlib import Path

from cachegraph.errors import ModelError

__all__ = ["check_header"]

MAX_ITEMS = 4_000_000  # of all arrays; the largest vocabularies known have 1.3 million, with merges, scores and types
MAX_FIELDS = 100_000  # metadata, or tensors
MAX_DIMENSIONS = 8
STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of scalar types


def check_header(gguf: Path) -> None:
    """Raise ModelError where the header doesn't fit the file, and OSError where the file can't be read."""
    with gguf.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        try:
            _Header(data).check()
        except (struct.error, _Misfit) as error:
            why = str(error) if isinstance(error, _Misfit) else "it ends inside its header"
            raise ModelError(f"the GGUF file {str(gguf)!r} is damaged: {why}; fetch it again") from None


class _Misfit(Exception):
    """A length that doesn't fit the file."""


class _Header:
    def __init__(self, data: mmap):
        self._data, self._at = data, 4  # behind the magic
        self._order = "<"
        self._items = 0

    def check(self) -> None:
        (version,) = self._unpack("I")
        if version & 0xFFFF == 0:  # written on a machine of the other byte order
            self._order = ">"
        tensors, fields = self._unpack("QQ")
        for count, what in ((tensors, "tensors"), (fields, "fields")):
            if count > MAX_FIELDS:
                raise _Misfit(f"it states {count:,} {what}")
        for _ in range(fields):
            self._skip_string()
            (kind,) = self._unpack("I")
            self._skip_value(kind)
        for _ in range(tensors):
            self._skip_string()
            (dimensions,) = self._unpack("I")
            if dimensions > MAX_DIMENSIONS:
                raise _Misfit(f"a tensor states {dimensions:,} dimensions")
            self._skip(8 * dimensions + 4 + 8)

    def _skip_value(self, kind: int) -> None:
        if kind == STRING:
            self._skip_string()
        elif kind != ARRAY:
            self._skip(self._size_of(kind))
        else:
            inner, count = self._unpack("IQ")
            self._items += count
            if self._items > MAX_ITEMS:
                raise _Misfit(f"its arrays state {self._items:,} items")
            if inner == ARRAY:
                raise _Misfit("it holds arrays of arrays")
            if inner != STRING:
                self._skip(self._size_of(inner) * count)
                return
            for _ in range(count):
                self._skip_string()

    def _size_of(self, kind: int) -> int:
        if kind not in SIZES:
            raise _Misfit(f"it holds a value of the unknown type {kind}")
        return SIZES[kind]

    def _skip_string(self) -> None:
        (length,) = self._unpack("Q")
        self._skip(length)

    def _skip(self, length: int) -> None:
        left = len(self._data) - self._at
        if length > left:
            raise _Misfit(f"it states {length:,} bytes where it has {left:,}")
        self._at += length

    def _unpack(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from(self._order + form, self._data, self._at)
        self._at += struct.calcsize(self._order + form)
        return values
