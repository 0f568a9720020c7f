"""A fuser's card: which two models it joins, how, and what it was trained on. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveInt, ValidationError, model_validator

from cachegraph.engine.shapes import KVShape, describe_shapes
from cachegraph.engine.spec import Strict
from cachegraph.errors import FuserError

from ..cache.layers import LayerPair, check_layers
from .trained_rows import TrainedRows

__all__ = ["Alignment", "Card", "Geometry", "ModelEnd", "checked_card"]

Alignment = Literal["ids", "first", "longest", "offsets"]


Heads = Annotated[int, Field(gt=0, le=4096)]
Dim = Annotated[int, Field(gt=0, le=65536)]


@dataclass(frozen=True)
class Geometry:
    """What of a model decides the shape of its KV cache: numbers of all layers, or by layer where they differ.

    A layer's `head_dim` is of its keys and its values, or a pair where those differ.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", revalidate_instances="always")

    layers: Annotated[int, Field(gt=0, le=4096)]
    kv_heads: Heads | tuple[Heads, ...]
    head_dim: Dim | tuple[Dim | tuple[Dim, Dim], ...]

    def __post_init__(self) -> None:
        for name in ("kv_heads", "head_dim"):
            by_layer = getattr(self, name)
            if isinstance(by_layer, int):
                continue
            if len(by_layer) != self.layers:
                raise ValueError(
                    f"{name} has {len(by_layer)} entries for {self.layers} layers; give one for each layer"
                )
            plain = tuple(each[0] if isinstance(each, tuple) and len(set(each)) == 1 else each for each in by_layer)
            one = plain[0] if len(set(plain)) == 1 and isinstance(plain[0], int) else plain
            object.__setattr__(self, name, one)  # so that equal geometries are equal

    def shape(self, layer: int) -> KVShape:
        """What that layer keeps of a position."""
        heads = self.kv_heads if isinstance(self.kv_heads, int) else self.kv_heads[layer]
        dim = self.head_dim if isinstance(self.head_dim, int) else self.head_dim[layer]
        return KVShape(heads, *(dim if isinstance(dim, tuple) else (dim, dim)))

    @property
    def shapes(self) -> tuple[KVShape, ...]:
        return tuple(self.shape(layer) for layer in range(self.layers))

    def __str__(self) -> str:
        return describe_shapes(self.shapes)


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
        # Names of fields and indices, without pydantic's names for the members of a union.
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())
        raise FuserError(
            f"{where} is wrong at {place!r}: {first['msg']}; correct it, or use a cachegraph that knows its version"
        ) from error
