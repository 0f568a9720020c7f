"""A translator: makes a receiver's KV cache out of a sharer's, for text that only the sharer has read.

Keys on both sides are unrotated, so positions play no part. At each sharer position the keys and values of the chosen
sharer layers are laid side by side and brought through one bottleneck that all receiver layers share:

    z = down(x);   z' = z + gate * mlp(norm(z));   y = up(z')

Without the gated part this is a linear map of reduced rank, which ridge regression gives in closed form; ridge maps
between caches are those of arXiv 2608.03893, the two-layer correction that of arXiv 2606.13594.
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

from ..files.card import Card, ModelEnd, checked_card

__all__ = [
    "ARCHITECTURE",
    "Translator",
    "TranslatorNetwork",
    "TranslatorParams",
    "bottleneck_params",
    "build_translator",
    "new_translator",
]

ARCHITECTURE = "bottleneck"


class TranslatorParams(Strict):
    """The sizes that the models leave open: of the bottleneck, and of the correction in it (0: none)."""

    rank: Annotated[int, Field(gt=0, le=1 << 16)] = 768
    hidden: Annotated[int, Field(ge=0, le=1 << 16)] = 768


class TranslatorNetwork(nn.Module):
    """Of each position, keys before values: those of all sharer layers to those of all receiver layers.

    (positions, features) to (positions, features).
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
        self.register_buffer("scale", torch.ones(outer))  # of what is to come out: the weights themselves are near 1
        self.down = nn.Linear(inner, params.rank)
        self.up = nn.Linear(params.rank, outer)
        if params.hidden:
            self.norm = nn.LayerNorm(params.rank)
            self.expand = nn.Linear(params.rank, params.hidden)
            self.contract = nn.Linear(params.hidden, params.rank)
            self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
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

    def read(self, layers: Sequence[LayerKV]) -> Tensor:
        """What the network reads of a sharer's cache, all its layers, unrotated: (positions, features)."""
        geometry = self.card.sharer.geometry
        given = tuple(KVShape(k.shape[1], k.shape[3], v.shape[3]) for k, v in layers)
        if given != geometry.shapes:
            raise ChannelError(
                f"the translator reads a cache of {geometry}, but got {describe_shapes(given)}; use one of these two "
                "models"
            )
        chosen = [layers[index] for index in self.card.sharer_layers]
        device = self.network.down.weight.device
        return torch.cat([_rows(each).to(device) for layer in chosen for each in layer], dim=-1)

    def write(self, y: Tensor) -> tuple[LayerKV, ...]:
        """The network's output as a receiver's layers, unrotated, each (1, kv_heads, positions, head_dim)."""
        geometry = self.card.receiver.geometry
        shapes = geometry.shapes
        parts = torch.split(y, [width for each in shapes for width in (each.key_width, each.value_width)], dim=-1)
        by_head = [
            part.view(len(y), shape.kv_heads, -1).transpose(0, 1)[None]
            for part, shape in zip(parts, [shape for shape in shapes for _ in range(2)], strict=True)
        ]
        return tuple(LayerKV(*pair) for pair in zip(by_head[::2], by_head[1::2], strict=True))

    def translate(self, layers: Sequence[LayerKV]) -> tuple[LayerKV, ...]:
        """A sharer's layers, unrotated, as the receiver's, unrotated, in the network's number type."""
        weight = self.network.down.weight
        return self.write(self.network(self.read(layers).to(weight.device, weight.dtype)))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Translator":
        """This translator where it already is there, else a copy that is."""
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
    """The translator that a card describes, on torch's current default device. Raises FuserError for another kind."""
    if card.kind != "graft" or card.architecture != ARCHITECTURE or card.rope != "unrotated":
        raise FuserError(
            f"a fuser of kind {card.kind!r} and architecture {card.architecture!r} with {card.rope} keys is no "
            f"translator that this version knows; it knows {ARCHITECTURE!r} with unrotated keys"
        )
    return Translator(card, TranslatorNetwork(bottleneck_params(card), card))


def bottleneck_params(card: Card) -> TranslatorParams:
    """The sizes that a card states. Raises FuserError where one is wrong."""
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
    """A translator with random weights that reads these sharer layers (None: all), ready to be trained."""
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


def _rows(x: Tensor) -> Tensor:
    """(1, kv_heads, positions, head_dim) to (positions, kv_heads * head_dim)."""
    return x[0].transpose(0, 1).flatten(1)
