"""BottleneckFuser: one network that corrects all receiver layers at once from the sharer's cache at each position.

The network is a translator's (translator.py): unrotated keys and values of the chosen sharer layers are concatenated
and passed through one bottleneck. Its output is added to the receiver's cache. A new fuser outputs zeros. There are no
gates: every layer is corrected.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cachegraph.errors import ChannelError, FuserError

from ..files.card import Card, checked_card
from .base import Fuser, Gates, Stack
from .translator import ARCHITECTURE, TranslatorNetwork, bottleneck_params

__all__ = ["BottleneckFuser", "build_bottleneck", "new_bottleneck"]


@dataclass(frozen=True, eq=False)
class BottleneckFuser(Fuser):
    """The network of one (receiver, sharer) pair. It has no projectors."""

    network: TranslatorNetwork

    @property
    def module(self) -> nn.Module:
        return self.network

    @property
    def gates(self) -> dict[int, Gates]:
        return dict.fromkeys(range(self.card.receiver.geometry.layers), Gates(True, True))

    def is_open(self, layer: int) -> bool:
        return 0 <= layer < self.card.receiver.geometry.layers

    def reads(self, layer: int) -> tuple[int, ...]:
        return self.card.sharer_layers if self.is_open(layer) else ()

    def stack(self, layers: Sequence[int]) -> Stack | None:
        return None

    def state(self) -> dict[str, Tensor]:
        """The weights by the names under which they are saved, in the shapes of the network's parameters."""
        return dict(self.network.state_dict())

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "BottleneckFuser":
        weight, target = self.network.down.weight, torch.device(device)
        same_device = weight.device.type == target.type and target.index in (None, weight.device.index)
        if same_device and dtype in (None, weight.dtype):
            return self
        network = deepcopy(self.network).to(device=target, dtype=dtype or weight.dtype)
        return BottleneckFuser(self.card, {}, network)

    def features(self, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Concatenate the network's inputs from a sharer's unrotated cache: (batch, positions, features).

        `layers` start at the sharer's first layer; each is (batch, kv_heads, positions, head_dim). Raises ChannelError
        if there are too few layers.
        """
        if len(layers) <= self.card.sharer_layers[-1]:
            raise ChannelError(
                f"the fuser reads {self.card.sharer_layers[-1] + 1} sharer layers, but got {len(layers)}; use a cache "
                "of its sharer"
            )
        weight = self.network.down.weight
        chosen = [layers[index] for index in self.card.sharer_layers]
        return torch.cat(
            [_flat(tensor).to(weight.device, weight.dtype) for layer in chosen for tensor in layer], dim=-1
        )

    def corrections(self, layers: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Compute the unrotated corrections of the receiver's layers, each (batch, kv_heads, positions, head_dim)."""
        y = self.network(self.features(layers))
        shapes = self.card.receiver.geometry.shapes
        parts = torch.split(y, [width for shape in shapes for width in (shape.key_width, shape.value_width)], dim=-1)
        heads = [shape.kv_heads for shape in shapes for _ in ("keys", "values")]
        by_head = [part.view(*part.shape[:-1], n, -1).transpose(1, 2) for part, n in zip(parts, heads, strict=True)]
        return list(zip(by_head[::2], by_head[1::2], strict=True))


def build_bottleneck(card: Card) -> BottleneckFuser:
    """Build the fuser that a card describes, on torch's default device. Raises FuserError for another kind."""
    if card.kind != "fuse" or card.architecture != ARCHITECTURE or card.rope != "unrotated":
        raise FuserError(
            f"a {ARCHITECTURE!r} fuser reads unrotated keys, and the card says kind {card.kind!r}, architecture "
            f"{card.architecture!r} and {card.rope} keys; correct the card"
        )
    return BottleneckFuser(card, {}, TranslatorNetwork(bottleneck_params(card), card))


def new_bottleneck(card: Mapping[str, Any], *, seed: int = 0) -> BottleneckFuser:
    """Create a fuser with random weights. `card` has the two ends, `sharer_layers` and `params`."""
    fixed = {"architecture": ARCHITECTURE, "rope": "unrotated", "kind": "fuse"}
    full = checked_card({**card, **fixed}, "the new fuser")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fuser = build_bottleneck(full)
    for part in (fuser.network.up.weight, fuser.network.up.bias):
        nn.init.zeros_(part)
    fuser.train(False)
    return fuser


def _flat(x: Tensor) -> Tensor:
    """(batch, heads, positions, head_dim) to (batch, positions, heads * head_dim)."""
    return x.transpose(1, 2).flatten(2)
