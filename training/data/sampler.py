"""Sampler of the examples of each step. It depends on seed and step alone, so a resumed training sees the same ones."""

from collections.abc import Hashable, Sequence
from random import Random
from typing import TypeVar

__all__ = ["ExampleSampler"]

L = TypeVar("L")


class ExampleSampler:
    """Draws texts in a new random order each epoch, bucketed by length, and a few examples of each text.

    Examples are never padded, so bucketing saves no computation; it keeps the memory of steps even.
    """

    def __init__(
        self, groups: Sequence[Hashable], lengths: Sequence[int], *, texts: int, rows: int, seed: int, bucket: int = 16
    ):
        """`groups` and `lengths` have an entry per example: the sharer's text, and its length in tokens."""
        self._members: dict[Hashable, list[int]] = {}
        for row, group in enumerate(groups):
            self._members.setdefault(group, []).append(row)
        self._lengths = {group: lengths[members[0]] for group, members in self._members.items()}
        self._texts = min(texts, len(self._members))
        self._rows = rows
        self._seed = seed
        self._bucket = bucket * self._texts
        self._epoch: tuple[int, list[list[Hashable]]] = (-1, [])

    @property
    def per_epoch(self) -> int:
        return len(self._members) // self._texts

    def indices(self, step: int) -> list[int]:
        """The indices of a step's examples. Steps count from 0."""
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        draw = Random(f"{self._seed} rows {step}")  # noqa: S311
        chosen = []
        for group in self._epoch[1][place]:
            members = self._members[group]
            chosen += draw.sample(members, min(self._rows, len(members)))
        return chosen

    def _order(self, epoch: int) -> list[list[Hashable]]:
        draw = Random(f"{self._seed} epoch {epoch}")  # noqa: S311
        groups = list(self._members)
        draw.shuffle(groups)
        steps: list[list[Hashable]] = []
        for start in range(0, len(groups), self._bucket):
            alike = sorted(groups[start : start + self._bucket], key=lambda group: self._lengths[group])
            steps += [alike[i : i + self._texts] for i in range(0, len(alike), self._texts)]
        steps = [step for step in steps if len(step) == self._texts]
        draw.shuffle(steps)
        return steps
