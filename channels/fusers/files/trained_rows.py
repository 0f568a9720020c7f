"""Fingerprints of a fuser's training examples, kept on its card to detect evaluation on them.

The card holds a Bloom filter over hashes of the examples' texts. It finds every text in the training data; one in
twelve thousand other texts is a false positive. It reveals no text, and takes 20 bits per text and at most 160 KiB. No
torch.
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

FEW_WORDS = 4  # a shorter input may occur in any example; it counts only as an example's longest
KEPT = 65_536  # texts at most; larger data is represented by a subset, selected by hash
BITS = 20  # per text
PROBES = 10  # bits set per text
LARGEST = KEPT * BITS // 8

Inputs = Mapping[str, Any]


class Seen(NamedTuple):
    """How many of the examples that could be looked up were in the training data."""

    seen: int
    checked: int


class RowFilter(Strict):
    """A Bloom filter over the texts of the training examples."""

    rows: PositiveInt
    part: Annotated[PositiveInt, Field(description="The filter holds one of this many texts, chosen by hash.")] = 1
    filter: Annotated[
        str, Field(min_length=4, max_length=LARGEST * 4 // 3 + 4, description="The filter's bits, in base64.")
    ]

    @field_validator("filter")
    @classmethod
    def _is_a_filter(cls, value: str) -> str:
        try:
            b64decode(value, validate=True)
        except ValueError as error:
            raise ValueError("it is not base64") from error
        return value

    def look_up_texts(self, digests: Sequence[bytes]) -> list[bool]:
        """Whether the filter holds each of the texts that it could hold."""
        return [self._holds(digest) for digest in digests if _falls(digest, self.part)]

    def _holds(self, digest: bytes) -> bool:
        size = len(self._bytes) * 8
        return all(self._bytes[place >> 3] >> (place & 7) & 1 for place in _places(digest, size))

    @cached_property
    def _bytes(self) -> bytes:
        return b64decode(self.filter)


class TrainedRows(RowFilter):
    """The examples of a training, and of those that its start was trained on."""

    earlier: Annotated[
        tuple[RowFilter, ...], Field(description="The examples of the trainings whose weights it started from.")
    ] = ()

    def look_up(self, rows: Sequence[Inputs]) -> Seen:
        """Count how many of these examples the training data contains.

        An example counts as seen if a training example had the same inputs together, or one of them as its longest:
        the same question in another recipe, another question about the same story.
        """
        seen = checked = 0
        for values in _values(rows):
            texts = {"\n".join(values), *values[:1], *(text for text in values if text.count(" ") >= FEW_WORDS - 1)}
            digests = [_digest(text) for text in texts if text]
            held = [found for row_filter in (self, *self.earlier) for found in row_filter.look_up_texts(digests)]
            checked += bool(held)
            seen += any(held)
        return Seen(seen, checked)

    def after(self, start: "TrainedRows") -> "TrainedRows":
        """These examples, and those of the training whose weights this one started from."""
        first = RowFilter(rows=start.rows, part=start.part, filter=start.filter)
        return self.model_copy(update={"earlier": (first, *start.earlier)})


def trained_rows(rows: Sequence[Inputs]) -> TrainedRows | None:
    """Build the filter of the training examples' inputs; None if they hold no text."""
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
    """Each example's inputs, longest first, without those that all examples share, such as an instruction."""
    found = [[_normalised(value) for value in row.values()] for row in rows]
    common = set.intersection(*map(set, found)) if len(found) > 1 else set()
    return [sorted({*values} - common, key=lambda text: (-len(text), text)) for values in found]


def _normalised(value: Any) -> str:
    """Remove the differences between copies of a data set: case, punctuation, white space, composed characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(char if char.isalnum() else " " for char in folded).split())


def _digest(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _falls(digest: bytes, part: int) -> bool:
    """Whether a subset of one in `part` texts includes this one."""
    return int.from_bytes(digest[:4], "little") % part == 0


def _places(digest: bytes, size: int) -> list[int]:
    """The bits of a text, derived from two hashes (Kirsch and Mitzenmacher, 2008)."""
    first = int.from_bytes(digest[4:10], "little")
    step = int.from_bytes(digest[10:16], "little") | 1
    return [(first + number * step) % size for number in range(PROBES)]
