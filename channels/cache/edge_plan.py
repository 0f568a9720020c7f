"""What a cache edge will do in every run, decided once both models are known."""

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
    """The sender's own KV goes over: as it is between agents of one model, else translated."""

    carries: Literal["prompt", "reply", "all"]
    translation: Translation | None = None


@dataclass(frozen=True, eq=False)
class FusePlan:
    """Two models and the fuser that joins them."""

    sharer: Engine
    fuser: Fuser
    alignment: Alignment
    reads: Literal["receiver-prompt", "own-prompt"]
    include_response: bool
    aligner: Aligner | None = field(default=None)  # where the two have different tokens

    def stand_ins(self, ids: Iterable[int]) -> list[list[int]]:
        """By receiver token, what the sharer reads for it when it reads a reply along; the last one stands for it."""
        if self.aligner is None:
            return [[id_] for id_ in ids]
        if self.alignment == "offsets":
            return [self.aligner.candidates(id_) for id_ in ids]
        return [[id_] for id_ in self.aligner.tokens(ids)]


@dataclass(frozen=True, eq=False)
class JointPlan:
    """What only the sender has read is grafted, and what both have read is fused."""

    graft: GraftPlan
    fuse: FusePlan


EdgePlan = GraftPlan | FusePlan | JointPlan
