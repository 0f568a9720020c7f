"""Which rows a fuser was trained on, kept on its card, so that a comparison can say where it evaluates on them.

The card holds a Bloom filter over hashes of the rows' texts. It finds every text that was read, and takes one in twelve
thousand others for one. It names no text, and takes 20 bits a text and at most 160 KiB. No torch.
"""

import json
import unicodedata
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple

from pydantic import Field, PositiveInt, field_validator

from cachegraph.engine.spec import Strict

__all__ = ["Seen", "TrainedRows", "trained_rows"]

FEW_WORDS = 4  # a shorter input, unless it is a row's longest, may be that of any row
KEPT = 65_536  # texts at most; of larger data a part, told by the texts' hashes, stands for all
BITS = 20  # a text
PROBES = 10  # bits that each text sets
LARGEST = KEPT * BITS // 8

Inputs = Mapping[str, Any]


class Seen(NamedTuple):
    """How many of the rows that could be looked up were in the training data."""

    seen: int
    checked: int


class TrainedRows(Strict):
    """A Bloom filter over the texts of a training's rows."""

    rows: PositiveInt
    part: Annotated[PositiveInt, Field(description="The filter holds one text of so many, by its hash.")] = 1
    filter: Annotated[str, Field(min_length=4, max_length=LARGEST * 4 // 3 + 4, description="Its bits, in base64.")]

    @field_validator("filter")
    @classmethod
    def _is_a_filter(cls, value: str) -> str:
        try:
            b64decode(value, validate=True)
        except ValueError as error:
            raise ValueError("it is not base64") from error
        return value

    def look_up(self, rows: Sequence[Inputs]) -> Seen:
        """How many of these rows of inputs the training has read.

        A row counts as read if its inputs together were a training row's, or if one of them was the longest of a
        training row: the same question in another recipe, another question about the same story.
        """
        seen = checked = 0
        for values in _values(rows):
            texts = {"\n".join(values), *values[:1], *(text for text in values if text.count(" ") >= FEW_WORDS - 1)}
            digests = [digest for text in texts if text and _falls(digest := _digest(text), self.part)]
            checked += bool(digests)
            seen += any(self._holds(digest) for digest in digests)
        return Seen(seen, checked)

    def _holds(self, digest: bytes) -> bool:
        size = len(self._bytes) * 8
        return all(self._bytes[place >> 3] >> (place & 7) & 1 for place in _places(digest, size))

    @cached_property
    def _bytes(self) -> bytes:
        return b64decode(self.filter)


def trained_rows(rows: Sequence[Inputs]) -> TrainedRows | None:
    """The filter of a training's rows of inputs; None where they hold no text."""
    found = _values(rows)
    texts = {text for values in found for text in ("\n".join(values), *values[:1])}
    digests = {_digest(text) for text in texts if text}
    if not digests:
        return None
    part = 1
    while len(digests) > KEPT:
        part *= 2
        digests = {digest for digest in digests if _falls(digest, part)}
    bits = bytearray((len(digests) * BITS + 7) // 8)
    for digest in digests:
        for place in _places(digest, len(bits) * 8):
            bits[place >> 3] |= 1 << (place & 7)
    return TrainedRows(rows=len(found), part=part, filter=b64encode(bits).decode())


def _values(rows: Sequence[Inputs]) -> list[list[str]]:
    """Each row's inputs, the longest first, without those that all rows share, such as an instruction."""
    found = [[_normalised(value) for value in row.values()] for row in rows]
    common = set.intersection(*map(set, found)) if len(found) > 1 else set()
    return [sorted({*values} - common, key=lambda text: (-len(text), text)) for values in found]


def _normalised(value: Any) -> str:
    """A text without what copies of a data set differ in: case, punctuation, white space, composed characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(each if each.isalnum() else " " for each in folded).split())


def _digest(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _falls(digest: bytes, part: int) -> bool:
    """Whether a filter of one text in `part` holds this one."""
    return int.from_bytes(digest[:4], "little") % part == 0


def _places(digest: bytes, size: int) -> list[int]:
    """The bits of a text: two hashes give as many as are needed (Kirsch and Mitzenmacher, 2008)."""
    first = int.from_bytes(digest[4:10], "little")
    step = int.from_bytes(digest[10:16], "little") | 1
    return [(first + number * step) % size for number in range(PROBES)]
