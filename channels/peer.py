"""Peer: one end of an edge, as the channels see an agent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cachegraph.engine.engine import Engine

__all__ = ["Peer"]


@dataclass(frozen=True, eq=False)
class Peer:
    """One end of an edge. `engine` runs its model; None behind an endpoint and while nothing is loaded."""

    agent: str
    name: str  # the model, as people call it
    engine: "Engine | None" = None
    why_no_cache: str | None = None  # set where this end can neither send nor receive a KV cache
    reads_only: bool = False  # it writes nothing: as a reply it hands over the text of its prompt
    reads: frozenset[str] = frozenset()  # the inputs and agents whose text its prompt may hold
    holds: frozenset[str] = frozenset()  # those of them whose whole text it holds in every case
    source: str | None = None  # where its model comes from, equal for the same files; None where that is not known
    why_none_in: str | None = None  # set where this end can send a KV cache and receive none
    words_of: Mapping[str, str] = field(default_factory=dict)  # by sender that must send it words: why
    own_words: bool = False  # its prompt holds text of its own beside inputs and replies

    @property
    def identity(self) -> str | None:
        """Equal for equal weights; None where that is not known."""
        return None if self.engine is None else self.engine.model.identity
