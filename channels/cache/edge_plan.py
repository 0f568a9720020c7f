"""Plans of cache edges: graft, fuse, or both. A plan is built once both models are loaded and reused in every run."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from ..fusers.files.card import Alignment, Card
from ..fusers.networks.base import Fuser
from ..payload import most_layers
from ..peer import SharerEngine
from .align import Aligner
from .translate import Translation

__all__ = ["EdgePlan", "FusePlan", "GraftPlan", "JointPlan"]


@dataclass(frozen=True)
class GraftPlan:
    """Graft the sender's KV: unchanged between agents of one model, otherwise translated."""

    carries: Literal["prompt", "reply", "all"]
    translation: Translation | None = None

    @property
    def cards(self) -> tuple[Card, ...]:
        """The translator's card, if there is one."""
        return () if self.translation is None else (self.translation.translator.card,)

    @property
    def cache_layers(self) -> int | None:
        """The number of leading layers of the sender's cache that it reads; None: all."""
        return None if self.translation is None else self.translation.translator.sharer_depth


@dataclass(frozen=True, eq=False)
class FusePlan:
    """Correct the receiver's KV with a fuser that reads the sharer's."""

    sharer: SharerEngine
    fuser: Fuser
    alignment: Alignment
    reads: Literal["receiver-prompt", "own-prompt"]
    include_response: bool
    aligner: Aligner | None = field(default=None)  # None: both models use the same token ids

    @property
    def cards(self) -> tuple[Card, ...]:
        """The fuser's card."""
        return (self.fuser.card,)

    @property
    def cache_layers(self) -> int:
        """The number of leading layers of the sharer's cache that it reads; at least one is computed."""
        return max(self.fuser.sharer_depth, 1)

    def stand_ins(self, ids: Iterable[int]) -> list[list[int]]:
        """By receiver token of a reply, the tokens that the sharer reads for it; the last one is its counterpart."""
        if self.aligner is None:
            return [[id_] for id_ in ids]
        if self.alignment == "offsets":
            return [self.aligner.candidates(id_) for id_ in ids]
        return [[id_] for id_ in self.aligner.tokens(ids)]


@dataclass(frozen=True, eq=False)
class JointPlan:
    """Graft the entries that only the sender has read, and fuse those that both have read."""

    graft: GraftPlan
    fuse: FusePlan

    @property
    def cards(self) -> tuple[Card, ...]:
        """The cards of both."""
        return self.graft.cards + self.fuse.cards

    @property
    def cache_layers(self) -> int | None:
        """The number of leading layers of the sender's cache that either reads; None: all."""
        sent = [self.fuse.cache_layers] if self.fuse.reads == "own-prompt" else []
        return most_layers([self.graft.cache_layers, *sent])


EdgePlan = GraftPlan | FusePlan | JointPlan
