"""What a sender's cache holds, entry by entry: the KV, the token, and whose text it is."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from cachegraph.engine.kv.cache import KV, concat

if TYPE_CHECKING:
    from cachegraph.engine.kv.recurrent_state import State

__all__ = ["CachePlane", "Private", "join_planes"]


class Private(NamedTuple):
    """What only the sender has read: the KV, and of each entry the token and whose text it is."""

    kv: KV
    ids: list[int]
    origins: list[Any]


@dataclass(frozen=True, eq=False)
class CachePlane:
    """One row of a model, as it stood when its agent had finished.

    `origins` has an entry a position: (name, first character, end) of the input or agent whose text it is, or None for
    template text. The reply's name is the sender's own.
    """

    identity: str  # of the model
    sender: str
    segments: tuple[KV, ...]
    ids: Sequence[int]
    origins: Sequence[Any]
    replies: frozenset[str] = frozenset()  # the turns whose replies are in here, where it is joined of several
    corrected: bool = False  # sharers have changed entries of it
    grafts: dict[Any, Any] = field(default_factory=dict)  # what was grafted before, for the next who wants the same

    @cached_property
    def names(self) -> frozenset[str]:
        """Of all inputs and agents whose text is in here."""
        return frozenset(origin[0] for origin in self.origins if origin is not None)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        return sum(segment.nbytes for segment in self.segments)

    def private(self, seen: Collection[str], carries: Literal["prompt", "reply", "all"]) -> Private | None:
        """The entries that a receiver who has seen these texts has not, or None; one run of them shares memory."""
        wanted = [index for index, origin in enumerate(self.origins) if self._goes(origin, seen, carries)]
        if not wanted:
            return None
        ids, origins = ([each[index] for index in wanted] for each in (self.ids, self.origins))
        return Private(self._select(wanted), ids, origins)

    def _goes(self, origin: Any, seen: Collection[str], carries: str) -> bool:
        if origin is None or origin[0] in seen:
            return False
        return carries == "all" or (carries == "reply") == (origin[0] == self.sender or origin[0] in self.replies)

    def _select(self, wanted: Sequence[int]) -> KV:
        parts, first = [], 0
        for segment in self.segments:
            inside = [index - first for index in wanted if first <= index < first + len(segment)]
            if inside:
                run = inside[-1] - inside[0] + 1 == len(inside)
                parts.append(segment.select(slice(inside[0], inside[-1] + 1) if run else torch.tensor(inside)))
            first += len(segment)
        return replace(concat(parts), state=self._state_behind(wanted))

    def _state_behind(self, wanted: Sequence[int]) -> "State | None":
        """The recurrent state behind these entries, where one was kept there and none of them is missing in between.

        It is also a state of all that the row has in front of them.
        """
        end = wanted[-1] + 1
        if end - wanted[0] != len(wanted):
            return None
        ends = accumulate(map(len, self.segments))
        found = next((each.state for each, at in zip(self.segments, ends, strict=True) if at == end), None)
        return found if found is not None and found.length == end else None


def join_planes(turn: str, planes: Sequence[CachePlane]) -> CachePlane:
    """Caches of one agent's turns behind each other. A text that several of them have read counts once."""
    seen: set[str] = set()
    origins: list[Any] = []
    for plane in planes:
        origins += [None if origin is not None and origin[0] in seen else origin for origin in plane.origins]
        seen |= plane.names
    return CachePlane(
        planes[0].identity,
        turn,
        tuple(segment for plane in planes for segment in plane.segments),
        [token for plane in planes for token in plane.ids],
        origins,
        frozenset().union(*(plane.replies or {plane.sender} for plane in planes)),
        any(plane.corrected for plane in planes),
    )
