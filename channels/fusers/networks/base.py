"""Projector and Fuser: one projector per receiver layer, and a card, for every architecture."""

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
    """Corrections of a layer's keys and values, (batch, kv_heads, positions, head_dim); None: the gate is closed."""

    k: Tensor | None
    v: Tensor | None


class Gates(NamedTuple):
    """Whether a projector's key gate and value gate are open."""

    key: bool
    value: bool


class Stack(Protocol):
    """Several projectors with open gates as one; all tensors are (layers, batch, kv_heads, positions, head_dim)."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its inputs and its computation."""

    @property
    def kernel(self) -> LeanFuserKernel | None:
        """A kernel that computes everything in one call; None if this CPU or network has none."""

    def part(self, begin: int, end: int) -> "Stack":
        """Select the layers [begin, end); weights are shared."""

    def __call__(
        self, sharer_k: Tensor, sharer_v: Tensor, receiver_k: Tensor, receiver_v: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """Compute the corrections of keys and of values."""


class Projector(nn.Module, ABC):
    """Corrects one receiver layer from one sharer layer."""

    @property
    @abstractmethod
    def gates(self) -> Gates:
        """Which gates are open. While training, gates are soft and both count as open."""

    @abstractmethod
    def residual(self, sharer_k: Tensor, sharer_v: Tensor, receiver_k: Tensor, receiver_v: Tensor) -> Residual:
        """Compute the corrections at positions both ends have read; all tensors are (batch, kv_heads, positions,
        head_dim).

        Weights and gates are applied in float32 or wider, so a half-precision cache is rounded once.
        """

    @classmethod
    def stack(cls, projectors: "Sequence[Projector]") -> Stack | None:
        """Stack non-training projectors of this class with open gates; None if stacking does not pay."""
        return None

    def anneal(self, step: int) -> None:
        """Sharpen gates that are soft while training; a no-op without gates."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


@dataclass(frozen=True, eq=False)
class Fuser:
    """The projectors of one (receiver, sharer) pair, by receiver layer."""

    card: Card
    projectors: Mapping[int, Projector]

    def __iter__(self) -> Iterator[tuple[int, int, Projector]]:
        """Yield (receiver layer, sharer layer, projector), by receiver layer."""
        for receiver, sharer in self.card.layer_map:
            yield receiver, sharer, self.projectors[receiver]

    @property
    def module(self) -> nn.Module:
        """The module that holds all weights."""
        return nn.ModuleList(self.projectors.values())

    @property
    def gates(self) -> dict[int, Gates]:
        """The gates by corrected receiver layer."""
        return {layer: projector.gates for layer, _, projector in self}

    def is_open(self, layer: int) -> bool:
        projector = self.projectors.get(layer)
        return projector is not None and any(projector.gates)

    @property
    def open_layers(self) -> tuple[int, ...]:
        return tuple(layer for layer, gates in self.gates.items() if any(gates))

    def reads(self, layer: int) -> tuple[int, ...]:
        """The sharer layers that this receiver layer's correction reads."""
        return tuple(sharer for receiver, sharer, _ in self if receiver == layer)

    @property
    def sharer_layers(self) -> tuple[int, ...]:
        """The sharer layers that an open gate reads, ascending."""
        return tuple(sorted({sharer for layer in self.open_layers for sharer in self.reads(layer)}))

    @property
    def sharer_depth(self) -> int:
        """The number of leading sharer layers needed to compute those that an open gate reads."""
        return max((sharer + 1 for sharer in self.sharer_layers), default=0)

    def stack(self, layers: Sequence[int]) -> Stack | None:
        """Stack the projectors of these layers, all open; None if they can only run one by one."""
        projectors = [self.projectors[layer] for layer in layers]
        if (
            not projectors
            or any(projector.training for projector in projectors)
            or len({type(projector) for projector in projectors}) > 1
        ):
            return None
        trained = next(projectors[0].parameters()).requires_grad  # training may change its weights before the next call
        if trained or tuple(layers) != self.open_layers:
            return type(projectors[0]).stack(projectors)
        return self._whole_stack

    @cached_property
    def _whole_stack(self) -> Stack | None:
        projectors = [self.projectors[layer] for layer in self.open_layers]
        return type(projectors[0]).stack(projectors)

    @property
    def openness(self) -> float:
        """The fraction of gates that are open."""
        gates = [gate for both in self.gates.values() for gate in both]
        return sum(gates) / len(gates) if gates else 0.0

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def state(self) -> dict[str, Tensor]:
        """The weights by the names under which they are saved, in the shapes of the module's parameters."""
        return {
            f"layers.{layer}.{name}": tensor
            for layer, _, projector in self
            for name, tensor in projector.state_dict().items()
        }

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Fuser":
        """Return this fuser if it already has this device and dtype, else a converted copy."""
        target = torch.device(device)
        if all(_is_at(projector, target, dtype) for projector in self.projectors.values()):
            return self
        return self._map(lambda projector: deepcopy(projector).to(device=target, dtype=dtype or projector.dtype))

    def train(self, mode: bool = True) -> "Fuser":
        self.module.train(mode)
        return self

    def freeze(self) -> "Fuser":
        """Disable training, so that results derived from the weights can be cached. Returns self."""
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
