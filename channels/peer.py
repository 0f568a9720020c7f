"""Peer: one end of an edge, the channels' view of an agent."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from cachegraph.engine.engine import Engine
    from cachegraph.engine.kv.cache import KV
    from cachegraph.engine.model.attention import OnLayer
    from cachegraph.engine.model.load import LoadedModel
    from cachegraph.engine.request import Prefilled

__all__ = ["Peer", "SharerEngine"]

T = TypeVar("T")


class SharerEngine(Protocol):
    """What an edge asks of the engine at its sender's end: an `Engine`, or the stand-in of one in another process."""

    @property
    def model(self) -> "LoadedModel":
        """The model; only its network may be absent here."""

    async def prefill(
        self,
        ids: Sequence[int],
        past: "Sequence[KV]" = (),
        *,
        positions: "Tensor | None" = None,
        logits: Literal["none", "last", "all"] = "none",
        on_layer: "OnLayer | None" = None,
        layers: int | None = None,
    ) -> "Prefilled":
        """Read `ids` behind `past`, layers of (1, kv_heads, positions, head_dim); see `Engine.prefill`.

        `positions`: (ids,) int64; None: consecutive.
        """

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function between two steps of the engine."""


@dataclass(frozen=True, eq=False)
class Peer:
    """One end of an edge. `engine` runs its model; None for an endpoint, an unloaded model, or one elsewhere."""

    agent: str
    name: str  # the model's display name
    engine: "Engine | None" = None
    why_no_cache: str | None = None  # why this end can neither send nor receive a KV cache
    reads_only: bool = False  # it decodes nothing; its prompt serves as its reply
    reads: frozenset[str] = frozenset()  # the inputs and agents whose text its prompt may contain
    holds: frozenset[str] = frozenset()  # the subset of `reads` whose whole text its prompt always contains
    source: str | None = None  # origin of the model's files, equal for equal files; None if unknown
    why_none_in: str | None = None  # why this end can send a KV cache but not receive one
    words_of: Mapping[str, str] = field(default_factory=dict)  # by sender whose text it needs, why
    own_words: bool = False  # its prompt contains text beside inputs and replies
    remote: SharerEngine | None = None  # stands for the engine of another process

    @property
    def identity(self) -> str | None:
        """The identity of the weights, equal for equal weights; None if unknown."""
        return None if (sharer := self.sharer) is None else sharer.model.identity

    @property
    def sharer(self) -> SharerEngine | None:
        """The engine of its model, in whichever process."""
        return self.engine or self.remote
