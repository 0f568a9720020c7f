"""`Learner`: the interface of a fuser or translator in training."""

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
ReportPhase = Callable[[str, int, int], None]  # name of the work, done, total


class Learner(ABC, Generic[L]):
    """One fuser in training, for encoded examples of type `L`."""

    module: nn.Module  # all trainable parameters
    start_card: Card | None = None  # of the trained weights that it starts from

    @abstractmethod
    def encode(self, example: TrainingExample) -> L:
        """Turn an example's text into tokens. Raises InputError if it can't be used."""

    @abstractmethod
    def trees(
        self, examples: Sequence[L], others: Sequence[L] | None = None, right_only: bool = False
    ) -> tuple[list[Tree], list[int]]:
        """The examples' prompts after their caches, and for each example its index among the branches of all trees.

        `others` is the mismatched control: each prompt gets the sharer's cache of that other example. `right_only`
        leaves out all replies but the right one.
        """

    @abstractmethod
    def replies(self, example: L) -> Replies: ...

    @abstractmethod
    def group(self, example: L) -> Hashable:
        """A key that is equal for examples whose sharer reads the same text."""

    @abstractmethod
    def prompt_tokens(self, examples: Sequence[L]) -> int:
        """The number of prompt tokens that both models prefill; a text that examples share counts once."""

    def prepare(self, examples: Sequence[L], report: ReportPhase) -> None:
        """Precompute for all examples. Called first, if the training uses each of them at least once."""

    def start(self, examples: Sequence[L], report: ReportPhase) -> None:
        """Initialise the weights from data, before the first step."""

    def learning_rate_scales(self) -> Mapping[Tensor, float]:
        """Factors of `optim.learning_rate` by parameter, of any shape; 1 for the others."""
        return {}

    def anneal(self, step: int) -> None:
        """Set the temperature of gates that are soft while training."""

    @abstractmethod
    def save(self, folder: Path, card: dict[str, object], dtype: torch.dtype) -> Card:
        """Save the current fuser with these additions to its card."""
