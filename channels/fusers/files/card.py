"""Card: the two models that a fuser joins, how it joins them, and its training data. No torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveInt, ValidationError, model_validator

from cachegraph.common.atomic_write import write_atomically
from cachegraph.common.file_lock import open_locked
from cachegraph.engine.kv.shapes import KVShape, describe_shapes
from cachegraph.engine.spec import Strict
from cachegraph.errors import ConfigError, FuserError, library_errors

from ..layer_map import LayerPair, check_layers
from .atomic_folder import read_json
from .trained_rows import TrainedRows

__all__ = [
    "CARD",
    "Alignment",
    "Card",
    "Carries",
    "EdgeTask",
    "Evidence",
    "Geometry",
    "ModelEnd",
    "change_card",
    "checked_card",
    "read_card",
]

CARD = "card.json"

Alignment = Literal["ids", "first", "longest", "offsets"]
EdgeTask = Literal["shared", "private"]  # text that both ends read; text that only the sharer reads
Carries = Literal["prompt", "reply", "all"]  # the part of the sender's cache that an edge transfers


Heads = Annotated[int, Field(gt=0, le=4096)]
Dim = Annotated[int, Field(gt=0, le=65536)]


@dataclass(frozen=True)
class Geometry:
    """The geometry of a model's KV cache: numbers for all layers, or by layer if they differ.

    A layer's `head_dim` applies to its keys and values, or is a pair if those differ.
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
            plain = tuple(size[0] if isinstance(size, tuple) and len(set(size)) == 1 else size for size in by_layer)
            one = plain[0] if len(set(plain)) == 1 and isinstance(plain[0], int) else plain
            object.__setattr__(self, name, one)  # equal geometries must compare equal

    def shape(self, layer: int) -> KVShape:
        """The shape of one position in this layer."""
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
    identity: Annotated[
        str | None, Field(description="Identity of the exact weights it was trained with; null: unknown.")
    ] = None
    geometry: Geometry
    vocab: PositiveInt | None = None


class Evidence(Strict):
    """A measurement of whether a fuser transfers what its sharer read: own cache against another example's.

    Means over examples in the metric's unit; `low` and `high` are the 95 % confidence interval of the difference.
    """

    task: Annotated[
        EdgeTask,
        Field(description="What the sharer's cache held: text that both ends read, or that only the sharer read."),
    ]
    data: Annotated[str, Field(min_length=1, description="Source of the examples.")]
    metric: Annotated[str, Field(min_length=1)]
    examples: PositiveInt
    own: Annotated[float, Field(allow_inf_nan=False, description="Score with the example's own cache.")]
    mismatched: Annotated[float, Field(allow_inf_nan=False, description="Score with another example's cache.")]
    low: Annotated[float, Field(allow_inf_nan=False, description="Lower bound of own minus mismatched.")]
    high: Annotated[float, Field(allow_inf_nan=False)]
    carries: Annotated[Carries | None, Field(description="For a translator: what the edge carried.")] = None

    @model_validator(mode="after")
    def _interval_holds_the_difference(self) -> "Evidence":
        if not self.low <= self.difference + 1e-6 or not self.difference - 1e-6 <= self.high:
            raise ValueError(f"own minus mismatched is {self.difference:g}, outside of {self.low:g} to {self.high:g}")
        return self

    @property
    def difference(self) -> float:
        """Own minus mismatched."""
        return self.own - self.mismatched

    @property
    def shows_communication(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0

    def __str__(self) -> str:
        return (
            f"own minus mismatched {self.difference:+.3g} ({self.low:.3g} to {self.high:.3g}) {self.metric}, "
            f"{self.examples} examples of {self.data}"
        )


class Card(Strict):
    """Everything known of a fuser except its weights."""

    version: Literal[1] = 1
    receiver: ModelEnd
    sharer: ModelEnd
    layer_map: Annotated[
        tuple[LayerPair, ...],
        Field(default=(), description="[receiver layer, sharer layer] pairs, for one network per layer."),
    ]
    sharer_layers: Annotated[
        tuple[int, ...], Field(default=(), description="Sharer layers that one network for all receiver layers reads.")
    ]
    architecture: Annotated[str, Field(min_length=1)] = "c2c"
    params: Annotated[
        dict[str, int | float | str], Field(default_factory=dict, description="Sizes of the architecture.")
    ]
    alignment: Annotated[Alignment, Field(description="Rule that pairs each receiver token with a sharer token.")] = (
        "ids"
    )
    reads: Annotated[
        Literal["receiver-prompt", "own-prompt"],
        Field(description="Prompt that the sharer prefills before it shares its cache."),
    ] = "receiver-prompt"
    rope: Annotated[
        Literal["rotated", "unrotated"],
        Field(description="Whether the fuser corrects keys with RoPE applied, or with RoPE removed."),
    ] = "rotated"
    kind: Annotated[
        Literal["fuse", "graft", "prefix"],
        Field(
            description="Fuse: corrects what both ends have read. Graft: translates what only the sharer has read. "
            "Prefix: trained entries of the receiver alone, a control of comparisons."
        ),
    ] = "fuse"
    scope: Annotated[
        str | None,
        Field(description="The only prompts that it is for; an edge must then name it. null: any prompt."),
    ] = None
    trained_on: str | None = None
    trained_rows: Annotated[
        TrainedRows | None,
        Field(description="Filter of the examples it was trained on, to detect them in an evaluation."),
    ] = None
    metrics: Annotated[dict[str, float], Field(default_factory=dict)]
    evidence: Annotated[
        tuple[Evidence, ...], Field(default=(), description="Measurements with the mismatched control.")
    ]
    licence: str | None = None
    created: Annotated[str | None, Field(description="Time of creation, ISO 8601.")] = None
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of fuser.safetensors.")] = None

    def communication(self, task: EdgeTask, carries: Carries | None = None) -> Evidence | None:
        """The strongest measurement that shows communication on this task; None if there is none.

        `carries` is what a translator's edge transfers. Evidence on prompts does not count for replies.
        """
        same = [evidence for evidence in self.evidence if evidence.task == task and evidence.carries in (None, carries)]
        shown = [evidence for evidence in same if evidence.shows_communication]
        return max(shown, key=lambda evidence: evidence.low, default=None)

    @model_validator(mode="after")
    def _layers_exist(self) -> "Card":
        check_layers(self.layer_map, self.receiver.geometry.layers, self.sharer.geometry.layers)
        layers = self.sharer_layers
        if self.kind == "prefix":
            if layers or self.layer_map:
                raise ValueError("a card of kind 'prefix' has neither sharer_layers nor a layer_map")
            return self
        all_layers = self.kind == "graft" or self.architecture == "bottleneck"
        if bool(layers) != all_layers or bool(self.layer_map) == all_layers:
            raise ValueError(
                "a card of kind 'graft' has sharer_layers and no layer_map, one of kind 'fuse' the reverse, unless its "
                "architecture is 'bottleneck'"
            )
        if list(layers) != sorted(set(layers)) or any(not 0 <= i < self.sharer.geometry.layers for i in layers):
            raise ValueError(f"sharer_layers must ascend, and the sharer has {self.sharer.geometry.layers} layers")
        return self


def checked_card(fields: Mapping[str, Any], where: str) -> Card:
    """Validate a card. Raises FuserError, which names the first invalid field and `where` it is."""
    try:
        return Card.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        # Field names and indices, without pydantic's names for union members.
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())
        raise FuserError(
            f"{where} is wrong at {place!r}: {first['msg']}; correct it, or use a cachegraph that knows its version"
        ) from error


def read_card(folder: Path | str) -> Card:
    """Read the card of a fuser's folder, without its weights. Raises FuserError if it is missing or damaged."""
    path = Path(folder) / CARD
    with library_errors(lambda why: FuserError(f"{str(path)!r} can't be read: {why}; get it again from its source")):
        return checked_card(read_json(path), repr(str(path)))


def change_card(folder: Path, change: Callable[[Card], Card]) -> None:
    """Replace a fuser's card under a lock shared between processes.

    Raises FuserError if the card is damaged, InputError if another command is changing it, ConfigError if it can't be
    written.
    """
    path = folder / CARD
    try:
        with open_locked(path, "rb", "give this one again when that has ended"):
            write_atomically(path, change(read_card(folder)).model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise ConfigError(
            f"{str(path)!r} can't be written ({error.strerror}); check its permissions, or copy the fuser first"
        ) from error
