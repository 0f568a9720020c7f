"""Create fusers with random weights, by the name of their architecture."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from pydantic import ValidationError

from cachegraph.engine.kv.shapes import KVShape
from cachegraph.errors import FuserError

from ..files.card import Alignment, Geometry, checked_card
from ..layer_map import LAYER_MAPS, LayerPair
from .base import Fuser, Projector

__all__ = ["ARCHITECTURES", "build_projector", "new_fuser"]

Params = Mapping[str, int | float | str]
Builder = Callable[[Params, KVShape, KVShape], Projector]


def _c2c(params: Params, receiver: KVShape, sharer: KVShape) -> Projector:
    from .c2c import C2CParams, C2CProjector

    return C2CProjector(C2CParams.model_validate(dict(params)), receiver, sharer)


def _lean(params: Params, receiver: KVShape, sharer: KVShape) -> Projector:
    from .lean import LeanParams, LeanProjector

    return LeanProjector(LeanParams.model_validate(dict(params)), receiver, sharer)


ARCHITECTURES: dict[str, Builder] = {"c2c": _c2c, "lean": _lean}


def build_projector(architecture: str, params: Params, receiver: KVShape, sharer: KVShape) -> Projector:
    """Build a projector for a receiver layer and a sharer layer of these shapes, on torch's default device.

    Raises FuserError for an unknown architecture or a wrong parameter.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(repr(name) for name in ARCHITECTURES)
        raise FuserError(f"there is no fuser architecture {architecture!r}; this version knows {known}")
    try:
        return ARCHITECTURES[architecture](params, receiver, sharer)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FuserError(
            f"the {architecture!r} fuser has a wrong parameter {place!r}: {first['msg']}; correct it in the card"
        ) from error


def new_fuser(
    architecture: str,
    receiver: Geometry,
    sharer: Geometry,
    *,
    layer_map: Literal["last_aligned", "k_nearest"] | Iterable[tuple[int, int]] = "last_aligned",
    names: tuple[str, str] = ("receiver", "sharer"),
    identities: tuple[str | None, str | None] = (None, None),
    alignment: Alignment = "ids",
    reads: Literal["receiver-prompt", "own-prompt"] = "receiver-prompt",
    rope: Literal["rotated", "unrotated"] = "rotated",
    kind: Literal["fuse"] = "fuse",
    gate_logit: float | None = None,
    seed: int = 0,
    card: Mapping[str, Any] | None = None,
    **params: Any,
) -> Fuser:
    """Create a fuser with random weights; `new_translator` creates translators.

    `names` and `identities` are those of the receiver and the sharer. `card` overrides fields of the card. `gate_logit`
    sets all gate logits, and above 0 opens the gates for inference; None keeps the architecture's default.
    """
    full = checked_card(
        {
            "receiver": {"name": names[0], "identity": identities[0], "geometry": receiver},
            "sharer": {"name": names[1], "identity": identities[1], "geometry": sharer},
            "layer_map": _layer_map(layer_map, receiver, sharer),
            "architecture": architecture,
            "params": params,
            "alignment": alignment,
            "reads": reads,
            "rope": rope,
            "kind": kind,
            **(card or {}),
        },
        "the new fuser",
    )
    projectors: dict[int, Projector] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer, source in full.layer_map:
            shapes = receiver.shape(layer), sharer.shape(source)
            projectors[layer] = build_projector(architecture, params, *shapes)
    for projector in projectors.values():
        for name, parameter in projector.named_parameters():
            if name.endswith("gate_logit") and gate_logit is not None:
                torch.nn.init.constant_(parameter, gate_logit)
    return Fuser(full, projectors).train(False)


def _layer_map(
    given: Literal["last_aligned", "k_nearest"] | Iterable[tuple[int, int]], receiver: Geometry, sharer: Geometry
) -> tuple[LayerPair, ...]:
    if not isinstance(given, str):
        return tuple(LayerPair(*pair) for pair in given)
    if given not in LAYER_MAPS:
        raise FuserError(f"there is no layer map {given!r}; give 'last_aligned', 'k_nearest' or pairs of layers")
    return LAYER_MAPS[given](receiver.layers, sharer.layers)
