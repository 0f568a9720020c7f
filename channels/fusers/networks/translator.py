"""Translator: computes a receiver's KV cache from a sharer's, for text that only the sharer has read.

Keys on both sides are unrotated, so positions play no part. At each position, the keys and values of the chosen sharer
layers are concatenated and passed through one bottleneck that all receiver layers share:

    z = down(x);   z' = z + gate * mlp(norm(z));   y = up(z')

Without the gated part this is a reduced-rank linear map, which ridge regression gives in closed form. Ridge maps
between caches follow arXiv 2608.03893; the two-layer correction follows arXiv 2606.13594.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from cachegraph.engine.kv.cache import LayerKV
from cachegraph.engine.kv.shapes import KVShape, describe_shapes
from cachegraph.engine.spec import Strict
from cachegraph.errors import ChannelError, FuserError

from ..files.card import Card, Geometry, ModelEnd, checked_card

__all__ = [
    "ARCHITECTURE",
    "Translator",
    "TranslatorNetwork",
    "TranslatorParams",
    "bottleneck_params",
    "build_translator",
    "join_layers",
    "new_translator",
    "split_layers",
]

ARCHITECTURE = "bottleneck"


class TranslatorParams(Strict):
    """Sizes that the models do not determine: of the bottleneck, and of its correction (0: none)."""

    rank: Annotated[int, Field(gt=0, le=1 << 16)] = 768
    hidden: Annotated[int, Field(ge=0, le=1 << 16)] = 768


class TranslatorNetwork(nn.Module):
    """Maps all sharer layers to all receiver layers per position, keys before values: (positions, features) to the
    same.
    """

    mean: Tensor
    deviation: Tensor
    scale: Tensor

    def __init__(self, params: TranslatorParams, card: Card):
        super().__init__()
        sharer, receiver = card.sharer.geometry, card.receiver.geometry
        inner = sum(sharer.shape(layer).width for layer in card.sharer_layers)
        outer = sum(shape.width for shape in receiver.shapes)
        self.register_buffer("mean", torch.zeros(inner))
        self.register_buffer("deviation", torch.ones(inner))
        self.register_buffer("scale", torch.ones(outer))  # of the outputs: keeps the weights near 1
        self.down = nn.Linear(inner, params.rank)
        self.up = nn.Linear(params.rank, outer)
        if params.hidden:
            self.norm = nn.LayerNorm(params.rank)
            self.expand = nn.Linear(params.rank, params.hidden)
            self.contract = nn.Linear(params.hidden, params.rank)
            self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map sharer features, (positions, features), to receiver features, (positions, features)."""
        z = self.down((x - self.mean) / self.deviation)
        if hasattr(self, "gate"):
            z = z + self.gate * self.contract(nn.functional.gelu(self.expand(self.norm(z))))
        y: Tensor = self.up(z) * self.scale
        return y


@dataclass(frozen=True, eq=False)
class Translator:
    """The network of one (receiver, sharer) pair, and its card."""

    card: Card
    network: TranslatorNetwork

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    @property
    def sharer_depth(self) -> int:
        """The number of leading sharer layers needed to compute those that it reads."""
        return max(self.card.sharer_layers) + 1

    def read(self, layers: Sequence[LayerKV]) -> Tensor:
        """Concatenate the network's inputs from a sharer's unrotated cache: (positions, features).

        `layers` are all layers of the sharer, or at least the first `sharer_depth`. Raises ChannelError if their shapes
        are not those of the sharer.
        """
        geometry = self.card.sharer.geometry
        shapes = tuple(KVShape(k.shape[1], k.shape[3], v.shape[3]) for k, v in layers)
        if shapes != geometry.shapes[: max(len(shapes), self.sharer_depth)]:
            raise ChannelError(
                f"the translator reads a cache of {geometry}, but got {describe_shapes(shapes)}; use one of these two "
                "models"
            )
        chosen = [layers[index] for index in self.card.sharer_layers]
        device = self.network.down.weight.device
        return torch.cat([_rows(tensor).to(device) for layer in chosen for tensor in layer], dim=-1)

    def write(self, y: Tensor) -> tuple[LayerKV, ...]:
        """Split the network's output into a receiver's unrotated layers, each (1, kv_heads, positions, head_dim)."""
        return split_layers(y, self.card.receiver.geometry)

    def translate(self, layers: Sequence[LayerKV]) -> tuple[LayerKV, ...]:
        """Translate a sharer's unrotated layers into the receiver's, in the network's dtype.

        Each keys or values tensor is (1, kv_heads, positions, head_dim).
        """
        weight = self.network.down.weight
        return self.write(self.network(self.read(layers).to(weight.device, weight.dtype)))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Translator":
        """Return this translator if it already has this device and dtype, else a converted copy."""
        weight = self.network.down.weight
        target = torch.device(device)
        same = weight.device.type == target.type and target.index in (None, weight.device.index)
        if same and dtype in (None, weight.dtype):
            return self
        return Translator(self.card, deepcopy(self.network).to(device=target, dtype=dtype))

    def train(self, mode: bool = True) -> "Translator":
        self.network.train(mode)
        return self


def build_translator(card: Card) -> Translator:
    """Build the translator that a card describes, on torch's default device. Raises FuserError for another kind."""
    if card.kind != "graft" or card.architecture != ARCHITECTURE or card.rope != "unrotated":
        raise FuserError(
            f"a fuser of kind {card.kind!r} and architecture {card.architecture!r} with {card.rope} keys is not a "
            f"translator that this version knows; it knows {ARCHITECTURE!r} with unrotated keys"
        )
    return Translator(card, TranslatorNetwork(bottleneck_params(card), card))


def bottleneck_params(card: Card) -> TranslatorParams:
    """Read the sizes that a card states. Raises FuserError if one is invalid."""
    try:
        return TranslatorParams.model_validate(dict(card.params))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FuserError(
            f"the {card.architecture!r} network has a wrong parameter {place!r}: {first['msg']}; correct it in the card"
        ) from error


def new_translator(
    receiver: ModelEnd,
    sharer: ModelEnd,
    *,
    sharer_layers: Sequence[int] | None = None,
    seed: int = 0,
    **params: int,
) -> Translator:
    """Create a translator with random weights that reads these sharer layers (None: all)."""
    layers = range(sharer.geometry.layers) if sharer_layers is None else sharer_layers
    card = checked_card(
        {
            "receiver": receiver,
            "sharer": sharer,
            "sharer_layers": list(layers),
            "architecture": ARCHITECTURE,
            "params": params,
            "alignment": "offsets",
            "reads": "own-prompt",
            "rope": "unrotated",
            "kind": "graft",
        },
        "the new translator",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_translator(card).train(False)


def split_layers(y: Tensor, geometry: Geometry) -> tuple[LayerKV, ...]:
    """Split (positions, features) into a model's layers, each (1, kv_heads, positions, head_dim)."""
    shapes = geometry.shapes
    parts = torch.split(y, [width for shape in shapes for width in (shape.key_width, shape.value_width)], dim=-1)
    by_head = [
        part.view(len(y), shape.kv_heads, -1).transpose(0, 1)[None]
        for part, shape in zip(parts, [shape for shape in shapes for _ in range(2)], strict=True)
    ]
    return tuple(LayerKV(*pair) for pair in zip(by_head[::2], by_head[1::2], strict=True))


def join_layers(layers: Sequence[LayerKV]) -> Tensor:
    """The reverse of `split_layers`: layers of (1, kv_heads, positions, head_dim) to (positions, all their entries)."""
    return torch.cat([_rows(tensor) for layer in layers for tensor in layer], dim=-1)


def _rows(x: Tensor) -> Tensor:
    """(1, kv_heads, positions, head_dim) to (positions, kv_heads * head_dim)."""
    return x[0].transpose(0, 1).flatten(1)
