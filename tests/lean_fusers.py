"""Lean fusers with corrections that show, and the long way to fuse on unrotated keys, to hold the channel's own to."""

from collections.abc import Sequence
from typing import Any

import torch

from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.engine.kv.cache import KV, LayerKV, concat
from cachegraph.engine.model.load import LoadedModel

__all__ = ["CLOSE", "IDS", "assert_close", "by_hand", "geometry", "lean", "same_bits"]

IDS = [4, 8, 15, 16, 23, 42]
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4}


def geometry(model: LoadedModel) -> Geometry:
    return Geometry(model.info.layers, model.info.kv_heads, model.info.head_dim)


def lean(receiver: LoadedModel, sharer: LoadedModel, *, rope: Any = "unrotated", seed: int = 2, **card: Any) -> Fuser:
    """With corrections about as large as what they correct."""
    made = new_fuser("lean", geometry(receiver), geometry(sharer), width=6, seed=seed, rope=rope, **card)
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for projector in made.projectors.values():
            for name, parameter in projector.named_parameters():
                if "up" in name or "alpha" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=numbers))
    return made


def by_hand(made: Fuser, mine: KV, theirs: KV, models: tuple[LoadedModel, LoadedModel], pairs: Any = None) -> KV:
    """The long way: both caches at position 0, projectors called here one by one, the whole cache rotated back."""
    origin = [torch.zeros(len(kv), dtype=torch.int64) for kv in (mine, theirs)]
    own, other = (model.rotation.move(kv, at) for model, kv, at in zip(models, (mine, theirs), origin, strict=True))
    here, there = pairs or (torch.arange(len(mine)), torch.arange(len(theirs)))
    layers = [LayerKV(k.clone(), v.clone()) for k, v in own.layers]
    for layer, from_, projector in made:
        with torch.no_grad():
            k, v = projector.residual(
                *(x[:, :, there] for x in other.layers[from_]), *(x[:, :, here] for x in own.layers[layer])
            )
        assert k is not None
        assert v is not None
        layers[layer].keys[:, :, here] += k
        layers[layer].values[:, :, here] += v
    return models[0].rotation.move(KV(tuple(layers), origin[0]), mine.positions)


def assert_close(one: KV, other: KV) -> None:
    assert torch.equal(one.positions, other.positions)
    for a, b in zip(one.layers, other.layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys, **CLOSE)
        torch.testing.assert_close(a.values, b.values, **CLOSE)


def same_bits(one: Sequence[KV], other: Sequence[KV]) -> bool:
    a, b = concat(one), concat(other)
    both = zip([x for layer in a.layers for x in layer], [x for layer in b.layers for x in layer], strict=True)
    return torch.equal(a.positions, b.positions) and all(torch.equal(x, y) for x, y in both)
