"""The two ends of an edge as the channels see them, and the decision how an edge is travelled."""

from dataclasses import dataclass
from typing import Any

__all__ = ["Peer"]


@dataclass(frozen=True, eq=False)
class Peer:
    """One end of an edge. `model` is the engine's loaded model, or None behind an endpoint."""

    agent: str
    name: str  # the model, as people call it
    model: Any = None
    why_no_cache: str | None = None  # set where this end can neither send nor receive a KV cache
    reads_only: bool = False  # it writes nothing: as a reply it hands over the text of its prompt
    reads: frozenset[str] = frozenset()  # the inputs and agents whose text its prompt may hold
    why_none_in: str | None = None  # set where this end can send a KV cache and receive none
