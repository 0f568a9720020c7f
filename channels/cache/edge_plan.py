"""Plans of cache edges: graft, fuse, or both. A plan is built once both models are loaded and reused in every run."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from cachegraph.engine.engine import Engine

from ..fusers.files.card import Alignment
from ..fusers.networks.base import Fuser
from .align import Aligner
from .translate import Translation

__all__ = ["EdgePlan", "FusePlan", "GraftPlan", "JointPlan"]


@dataclass(frozen=True)
class GraftPlan:
    """Graft the sender's KV: unchanged between agents of one model, otherwise translated."""

    carries: Literal["prompt", "reply", "all"]
    translation: Translation | None = None


@dataclass(frozen=True, eq=False)
class FusePlan:
    """Correct the receiver's KV with a fuser that reads the sharer's."""

    sharer: Engine
    fuser: Fuser
    alignment: Alignment
    reads: Literal["receiver-prompt", "own-prompt"]
    include_response: bool
    aligner: Aligner | None = field(default=None)  # None: both models use the same token ids

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


EdgePlan = GraftPlan | FusePlan | JointPlan
