"""Peer: one end of an edge, the channels' view of an agent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cachegraph.engine.engine import Engine

__all__ = ["Peer"]


@dataclass(frozen=True, eq=False)
class Peer:
    """One end of an edge. `engine` runs its model; None for an endpoint or an unloaded model."""

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

    @property
    def identity(self) -> str | None:
        """The identity of the weights, equal for equal weights; None if unknown."""
        return None if self.engine is None else self.engine.model.identity
