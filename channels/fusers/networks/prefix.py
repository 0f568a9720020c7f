"""Prefix: trained KV entries in front of a receiver's prompt, the tuned control of a comparison.

It reads no other model: it shows how much of what a fuser or translator gains comes from training alone. Prefix tuning
follows arXiv 2101.00190, with the entries themselves as parameters. Keys have RoPE applied, at positions from 0 on.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from cachegraph.engine.kv.cache import KV
from cachegraph.engine.spec import Strict
from cachegraph.errors import FuserError

from ..files.card import Card, Geometry, ModelEnd, checked_card
from .translator import split_layers

__all__ = ["Prefix", "PrefixNetwork", "build_prefix", "entry_width", "new_prefix"]


class PrefixParams(Strict):
    """Sizes that the model does not determine."""

    positions: Annotated[int, Field(gt=0, le=1 << 16)]


class PrefixNetwork(nn.Module):
    """The entries of all layers as one matrix, (positions, features), keys before values in each layer."""

    scale: Tensor

    def __init__(self, positions: int, width: int):
        super().__init__()
        self.register_buffer("scale", torch.ones(width))  # keeps the parameters near 1
        self.entries = nn.Parameter(torch.zeros(positions, width))

    def forward(self) -> Tensor:
        """The entries in float32, (positions, features)."""
        return self.entries.float() * self.scale.float()


@dataclass(frozen=True, eq=False)
class Prefix:
    """The entries for one receiver, and their card, whose sharer is the receiver itself."""

    card: Card
    network: PrefixNetwork

    @property
    def parameter_count(self) -> int:
        return self.network.entries.numel()

    def __len__(self) -> int:
        return len(self.network.entries)

    def kv(self, device: torch.device, dtype: torch.dtype) -> KV:
        """The entries as a cache of positions from 0 on, each layer (1, kv_heads, positions, head_dim)."""
        y = self.network().to(device, dtype)
        return KV(split_layers(y, self.card.receiver.geometry), torch.arange(len(self)))

    @torch.no_grad()
    def frozen_kv(self, device: torch.device, dtype: torch.dtype) -> KV:
        """As `kv`, each layer (1, kv_heads, positions, head_dim), without gradients."""
        return self.kv(device, dtype)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Prefix":
        """Return a converted copy."""
        return Prefix(self.card, deepcopy(self.network).to(device=torch.device(device), dtype=dtype))


def entry_width(geometry: Geometry) -> int:
    """The number of features of one position in all layers."""
    return sum(shape.width for shape in geometry.shapes)


def build_prefix(card: Card) -> Prefix:
    """Build the prefix that a card describes, on torch's default device. Raises FuserError for another kind."""
    if card.kind != "prefix":
        raise FuserError(f"a fuser of kind {card.kind!r} is not a trained prefix; train one with --control tuned")
    try:
        params = PrefixParams.model_validate(dict(card.params))
    except ValidationError as error:
        raise FuserError(
            f"the trained prefix has a wrong number of positions: {error.errors()[0]['msg']}; correct it in the card"
        ) from error
    return Prefix(card, PrefixNetwork(params.positions, entry_width(card.receiver.geometry)))


def new_prefix(receiver: ModelEnd, positions: int) -> Prefix:
    """Create a prefix of zeros."""
    card = {
        "receiver": receiver,
        "sharer": receiver,
        "architecture": "prefix",
        "params": {"positions": positions},
        "reads": "own-prompt",
        "kind": "prefix",
    }
    return build_prefix(checked_card(card, "the new prefix"))
