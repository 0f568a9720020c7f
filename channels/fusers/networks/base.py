"""What a fuser is, whatever its architecture: one projector a receiver layer, and a card."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cachegraph.engine.kernels import LeanFuserKernel

from ..files.card import Card

__all__ = ["Fuser", "Gates", "Projector", "Residual", "Stack"]


class Residual(NamedTuple):
    """What is added to a layer's keys and values, (batch, kv_heads, positions, head_dim); None: the gate is closed."""

    k: Tensor | None
    v: Tensor | None


class Gates(NamedTuple):
    """Which of a projector's two gates let anything through."""

    key: bool
    value: bool


class Stack(Protocol):
    """Several projectors with open gates at once: all tensors are (layers, batch, kv_heads, positions, head_dim)."""

    @property
    def dtype(self) -> torch.dtype:
        """What it takes and computes in."""

    @property
    def kernel(self) -> LeanFuserKernel | None:
        """All of it in one call, on a CPU that can."""

    def part(self, begin: int, end: int) -> "Stack":
        """Some of its layers, which share its memory."""

    def __call__(
        self, sharer_k: Tensor, sharer_v: Tensor, receiver_k: Tensor, receiver_v: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """The corrections of keys and of values."""


class Projector(nn.Module, ABC):
    """Corrects one receiver layer from one sharer layer."""

    @property
    @abstractmethod
    def gates(self) -> Gates:
        """Both are open while training, where gates are soft."""

    @abstractmethod
    def residual(self, sharer_k: Tensor, sharer_v: Tensor, receiver_k: Tensor, receiver_v: Tensor) -> Residual:
        """The corrections at positions both ends have seen; all tensors are (batch, kv_heads, positions, head_dim).

        Computed in float32 or wider from where weights and gates apply, so that a half-precision cache is rounded once.
        """

    @classmethod
    def stack(cls, projectors: "Sequence[Projector]") -> Stack | None:
        """Projectors of this class with open gates, of which none trains, as one; None where that is not worth it."""
        return None

    def anneal(self, step: int) -> None:
        """Sharpen gates that are soft while training; nothing where there are none."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


@dataclass(frozen=True, eq=False)
class Fuser:
    """The projectors of one (receiver, sharer) pair by receiver layer."""

    card: Card
    projectors: Mapping[int, Projector]

    def __iter__(self) -> Iterator[tuple[int, int, Projector]]:
        """(receiver layer, sharer layer, projector), by receiver layer."""
        for receiver, sharer in self.card.layer_map:
            yield receiver, sharer, self.projectors[receiver]

    @property
    def module(self) -> nn.Module:
        """All its weights."""
        return nn.ModuleList(self.projectors.values())

    @property
    def gates(self) -> dict[int, Gates]:
        """By receiver layer that it has a correction for."""
        return {layer: projector.gates for layer, _, projector in self}

    def is_open(self, layer: int) -> bool:
        projector = self.projectors.get(layer)
        return projector is not None and any(projector.gates)

    @property
    def open_layers(self) -> tuple[int, ...]:
        return tuple(layer for layer, gates in self.gates.items() if any(gates))

    def reads(self, layer: int) -> tuple[int, ...]:
        """The sharer layers that the correction of this receiver layer is computed from."""
        return tuple(sharer for receiver, sharer, _ in self if receiver == layer)

    @property
    def sharer_layers(self) -> tuple[int, ...]:
        """The sharer layers that an open gate reads, ascending."""
        return tuple(sorted({sharer for layer in self.open_layers for sharer in self.reads(layer)}))

    @property
    def sharer_depth(self) -> int:
        """How many of the sharer's first layers it takes to compute those that an open gate reads."""
        return max((sharer + 1 for sharer in self.sharer_layers), default=0)

    def stack(self, layers: Sequence[int]) -> Stack | None:
        """The projectors of these layers, all open, as one; None where they can only work one by one."""
        projectors = [self.projectors[layer] for layer in layers]
        if not projectors or any(each.training for each in projectors) or len({type(each) for each in projectors}) > 1:
            return None
        trained = next(projectors[0].parameters()).requires_grad  # its weights may be others by the next call
        if trained or tuple(layers) != self.open_layers:
            return type(projectors[0]).stack(projectors)
        return self._whole_stack

    @cached_property
    def _whole_stack(self) -> Stack | None:
        projectors = [self.projectors[layer] for layer in self.open_layers]
        return type(projectors[0]).stack(projectors)

    @property
    def openness(self) -> float:
        """The part of all gates that is open."""
        gates = [gate for both in self.gates.values() for gate in both]
        return sum(gates) / len(gates) if gates else 0.0

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def state(self) -> dict[str, Tensor]:
        """All its tensors by the names that they are saved under."""
        return {
            f"layers.{layer}.{name}": tensor
            for layer, _, projector in self
            for name, tensor in projector.state_dict().items()
        }

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Fuser":
        """This fuser where it already is there, else a copy that is."""
        target = torch.device(device)
        if all(_is_at(projector, target, dtype) for projector in self.projectors.values()):
            return self
        return self._map(lambda projector: deepcopy(projector).to(device=target, dtype=dtype or projector.dtype))

    def train(self, mode: bool = True) -> "Fuser":
        self.module.train(mode)
        return self

    def freeze(self) -> "Fuser":
        """Not to be trained, so that what is computed from its weights may be kept. Returns itself."""
        self.module.requires_grad_(False)
        return self

    def anneal(self, step: int) -> None:
        """Sharpen gates that are soft while training."""
        for projector in self.projectors.values():
            projector.anneal(step)

    def _map(self, change: Callable[[Projector], Projector]) -> "Fuser":
        return Fuser(self.card, {layer: change(projector) for layer, projector in self.projectors.items()})


def _is_at(projector: Projector, device: torch.device, dtype: torch.dtype | None) -> bool:
    same_device = projector.device.type == device.type and device.index in (None, projector.device.index)
    return same_device and dtype in (None, projector.dtype)
