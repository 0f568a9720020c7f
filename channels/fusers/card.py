"""A fuser's card: which two models it joins, how, and what it was trained on. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveInt, ValidationError, model_validator

from cachegraph.engine.spec import Strict
from cachegraph.errors import FuserError

from ..cache.layers import LayerPair, check_layers
from .trained_rows import TrainedRows

__all__ = ["Alignment", "Card", "Geometry", "ModelEnd", "checked_card"]

Alignment = Literal["ids", "first", "longest", "offsets"]


@dataclass(frozen=True)
class Geometry:
    """What of a model decides the shape of its KV cache."""

    __pydantic_config__ = ConfigDict(extra="forbid", revalidate_instances="always")

    layers: Annotated[int, Field(gt=0, le=4096)]
    kv_heads: Annotated[int, Field(gt=0, le=4096)]
    head_dim: Annotated[int, Field(gt=0, le=65536)]

    @property
    def width(self) -> int:
        """Numbers a position and layer, of keys or of values."""
        return self.kv_heads * self.head_dim

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.kv_heads} KV heads of {self.head_dim}"


class ModelEnd(Strict):
    """One of the two models."""

    name: Annotated[str, Field(min_length=1)]
    identity: Annotated[str | None, Field(description="The exact weights it was trained with; null: unknown.")] = None
    geometry: Geometry
    vocab: PositiveInt | None = None


class Card(Strict):
    """All that is known of a fuser but its weights."""

    version: Literal[1] = 1
    receiver: ModelEnd
    sharer: ModelEnd
    layer_map: Annotated[
        tuple[LayerPair, ...], Field(default=(), description="[receiver layer, sharer layer] pairs; of a fuser.")
    ]
    sharer_layers: Annotated[
        tuple[int, ...], Field(default=(), description="The layers that a translator reads, for all receiver layers.")
    ]
    architecture: Annotated[str, Field(min_length=1)] = "c2c"
    params: Annotated[
        dict[str, int | float | str], Field(default_factory=dict, description="The architecture's own sizes.")
    ]
    alignment: Annotated[Alignment, Field(description="Which sharer token stands for a receiver token.")] = "ids"
    reads: Annotated[
        Literal["receiver-prompt", "own-prompt"], Field(description="What the sharer has read when it shares.")
    ] = "receiver-prompt"
    rope: Annotated[
        Literal["rotated", "unrotated"], Field(description="Whether keys are corrected with RoPE on, or taken off.")
    ] = "rotated"
    kind: Annotated[
        Literal["fuse", "graft"],
        Field(description="Corrects what both ends have read, or translates what only the sharer has read."),
    ] = "fuse"
    trained_on: str | None = None
    trained_rows: Annotated[
        TrainedRows | None, Field(description="Which rows it was trained on, to tell where they are evaluated.")
    ] = None
    metrics: Annotated[dict[str, float], Field(default_factory=dict)]
    licence: str | None = None
    created: Annotated[str | None, Field(description="ISO 8601.")] = None
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$", description="Of fuser.safetensors.")] = None

    @model_validator(mode="after")
    def _layers_exist(self) -> "Card":
        check_layers(self.layer_map, self.receiver.geometry.layers, self.sharer.geometry.layers)
        layers = self.sharer_layers
        if (self.kind == "graft") != bool(layers) or (self.kind == "graft") == bool(self.layer_map):
            raise ValueError(
                "a card of kind 'graft' has sharer_layers and no layer_map, one of kind 'fuse' the reverse"
            )
        if list(layers) != sorted(set(layers)) or any(not 0 <= i < self.sharer.geometry.layers for i in layers):
            raise ValueError(f"sharer_layers must ascend, and the sharer has {self.sharer.geometry.layers} layers")
        return self


def checked_card(fields: Mapping[str, Any], where: str) -> Card:
    """A card of these fields; a FuserError that names the first wrong one and `where` it stands."""
    try:
        return Card.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FuserError(
            f"{where} is wrong at {place!r}: {first['msg']}; correct it, or use a cachegraph that knows its version"
        ) from error
