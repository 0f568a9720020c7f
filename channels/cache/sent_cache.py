"""SentCache: the KV cache that a sender hands over, and the selection of entries for a receiver."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from cachegraph.engine.kv.cache import KV, concat

from ..fusers.files.card import Carries
from ..payload import KVSpan, Origin

if TYPE_CHECKING:
    from cachegraph.engine.kv.recurrent_state import RecurrentState

__all__ = ["SentCache", "join_caches"]


@dataclass(frozen=True, eq=False)
class SentCache(KVSpan):
    """A row of a model at the end of its agent's turn, each KV layer (1, kv_heads, positions, head_dim).

    The origins of the reply carry the sender's name.
    """

    identity: str  # of the model
    sender: str
    replies: frozenset[str] = frozenset()  # ids of the turns whose replies it holds, if caches were joined
    corrected: bool = False  # whether a fuser has changed any entry

    def private(self, seen: Collection[str], carries: Carries) -> KVSpan | None:
        """Select the entries whose text is not in `seen`, as one segment; None if there are none.

        Consecutive entries share memory with this cache; others are copied.
        """
        wanted = [index for index, origin in enumerate(self.origins) if self._is_wanted(origin, seen, carries)]
        if not wanted:
            return None
        ids, origins = [self.ids[index] for index in wanted], [self.origins[index] for index in wanted]
        return KVSpan((self._select(wanted),), ids, origins)

    def has_private(self, seen: Collection[str], carries: Carries) -> bool:
        """Whether `private` would select any entry."""
        return any(self._is_wanted(origin, seen, carries) for origin in self.origins)

    def _is_wanted(self, origin: Origin | None, seen: Collection[str], carries: Carries) -> bool:
        if origin is None or origin.name in seen:
            return False
        is_reply = origin.name == self.sender or origin.name in self.replies
        return carries == "all" or (carries == "reply") == is_reply

    def _select(self, wanted: Sequence[int]) -> KV:
        parts, first = [], 0
        for segment in self.segments:
            inside = [index - first for index in wanted if first <= index < first + len(segment)]
            if inside:
                consecutive = inside[-1] - inside[0] + 1 == len(inside)
                parts.append(segment.select(slice(inside[0], inside[-1] + 1) if consecutive else torch.tensor(inside)))
            first += len(segment)
        return replace(concat(parts), state=self._state_behind(wanted))

    def _state_behind(self, wanted: Sequence[int]) -> "RecurrentState | None":
        """The recurrent state after consecutive entries, if it was kept at that position.

        The state also covers everything in the row before these entries.
        """
        end = wanted[-1] + 1
        if end - wanted[0] != len(wanted):
            return None
        ends = accumulate(map(len, self.segments))
        found = next((segment.state for segment, at in zip(self.segments, ends, strict=True) if at == end), None)
        return found if found is not None and found.length == end else None


def join_caches(turn: str, caches: Sequence[SentCache]) -> SentCache:
    """Concatenate the caches of one agent's turns along the positions. Text that several turns have read counts once.

    Each KV layer is (1, kv_heads, positions, head_dim).
    """
    seen: set[str] = set()
    origins: list[Origin | None] = []
    for cache in caches:
        origins += [None if origin is not None and origin.name in seen else origin for origin in cache.origins]
        seen |= cache.names
    return SentCache(
        tuple(segment for cache in caches for segment in cache.segments),
        [token for cache in caches for token in cache.ids],
        origins,
        caches[0].identity,
        turn,
        frozenset().union(*(cache.replies or {cache.sender} for cache in caches)),
        any(cache.corrected for cache in caches),
    )
