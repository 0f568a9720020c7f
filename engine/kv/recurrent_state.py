"""Recurrent state of rows: what layers remember of earlier tokens where they keep no KV, or beside it.

A state is an immutable value: a forward pass copies what it changes. So any number of rows may share a state, a prefix
or a graft may keep it, and a pass that fails leaves it as it was. It stands behind the last token of a row and cannot
be cut: there is no state behind an earlier token unless one was kept there.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

__all__ = ["LayerState", "RecurrentState", "StateShapes"]

StateShapes = tuple[tuple[str, tuple[int, ...]], ...]  # by tensor of a state, its name and shape


class LayerState(NamedTuple):
    """One layer's states by number, each with a batch of 1: of its convolution, and of its recurrence."""

    conv: tuple[Tensor | None, ...]
    recurrent: tuple[Tensor | None, ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> "LayerState":
        """The same with every tensor, (1, ...) in the model's own shape, changed."""
        return LayerState(*(tuple(None if tensor is None else change(tensor) for tensor in part) for part in self))


@dataclass(frozen=True, eq=False, repr=False)
class RecurrentState:
    """A row's recurrent state behind its first `length` tokens, which stand at positions from 0 on without a gap."""

    length: int
    layers: Mapping[int, LayerState]  # by layer of the model

    def __repr__(self) -> str:
        return f"RecurrentState({len(self.layers)} layers, behind {self.length} tokens)"

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that it holds, (1, ...) each, in the model's own shapes."""
        for layer in self.layers.values():
            for part in layer:
                yield from (tensor for tensor in part if tensor is not None)

    def map(self, change: Callable[[Tensor], Tensor]) -> "RecurrentState":
        """The same with every tensor, (1, ...) in the model's own shape, changed."""
        return RecurrentState(self.length, {index: layer.map(change) for index, layer in self.layers.items()})

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Its tensors, (1, ...) each, under names, as `from_named` takes them."""
        for index, layer in self.layers.items():
            for kind, part in zip(LayerState._fields, layer, strict=True):
                yield from ((f"{index}.{kind}.{n}", tensor) for n, tensor in enumerate(part) if tensor is not None)

    @classmethod
    def from_named(cls, tensors: Mapping[str, Tensor], shapes: "StateShapes", length: int) -> "RecurrentState | None":
        """Build a state from the tensors of `named`; None if one is missing or not of `shapes`, (1, ...)."""
        layers: dict[int, tuple[dict[int, Tensor], ...]] = {}
        for name, shape in shapes:
            tensor = tensors.get(name)
            if tensor is None or tensor.shape != shape or not tensor.is_floating_point():
                return None
            index, kind, number = name.split(".")
            parts = layers.setdefault(int(index), tuple({} for _ in LayerState._fields))
            parts[LayerState._fields.index(kind)][int(number)] = tensor
        return cls(length, {index: LayerState(*map(_by_number, parts)) for index, parts in layers.items()})

    def compact(self) -> "RecurrentState":
        """With memory of its own: a state out of a batch holds the whole batch's."""
        return self.map(lambda tensor: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone())


def _by_number(states: Mapping[int, Tensor]) -> tuple[Tensor | None, ...]:
    return tuple(states.get(number) for number in range(1 + max(states, default=-1)))
