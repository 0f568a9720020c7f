"""What learns: a translator or a fuser, and how a lesson's prompt becomes a cache that carries its gradients."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from cachegraph.channels.fusers.files.card import Card

from ..data.dataset import TrainingExample
from ..data.examples import Replies
from ..data.packed_replies import Tree

__all__ = ["Learner", "ReportPhase"]

L = TypeVar("L")
ReportPhase = Callable[[str, int, int], None]  # what, how much of it is done, how much there is


class Learner(ABC, Generic[L]):
    """One fuser in training, for lessons of its kind."""

    module: nn.Module  # all that learns

    @abstractmethod
    def encode(self, example: TrainingExample) -> L:
        """Raises InputError where the row can't be learnt from."""

    @abstractmethod
    def trees(
        self, examples: Sequence[L], others: Sequence[L] | None = None, right_only: bool = False
    ) -> tuple[list[Tree], list[int]]:
        """Prompts behind their caches, and for each lesson its place among all branches, counted through the trees.

        With `others`, the control: each lesson's prompt gets the sharer's cache of that other lesson. `right_only`
        leaves out all replies but the right one.
        """

    @abstractmethod
    def replies(self, example: L) -> Replies: ...

    @abstractmethod
    def group(self, example: L) -> Hashable:
        """Equal where the sharer has read the same."""

    @abstractmethod
    def prompt_tokens(self, examples: Sequence[L]) -> int:
        """Tokens that both models read for these lessons' prompts, shared texts once."""

    def prepare(self, examples: Sequence[L], report: ReportPhase) -> None:
        """What may be computed for all lessons at once, before anything else, where each will be learnt from."""

    def start(self, examples: Sequence[L], report: ReportPhase) -> None:
        """What comes before the first step, if anything."""

    def learning_rate_scales(self) -> Mapping[Tensor, float]:
        """The part of the learning rate that a parameter moves by, where that is not all of it."""
        return {}

    def anneal(self, step: int) -> None:
        """Sharpen gates that are soft while training."""

    @abstractmethod
    def save(self, folder: Path, card: dict[str, object], dtype: torch.dtype) -> Card:
        """The fuser as it is now, with these additions to its card."""
