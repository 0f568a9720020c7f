"""The results of requests to an engine, and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from .kv.cache import KV, concat
from .sampling.reply import Finish

__all__ = ["Cost", "Generated", "KVUse", "Prefilled"]


@dataclass
class Cost:
    """Seconds and tokens that a request took. A step's seconds count in full for every row that took part in it."""

    queued: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    prefilled: int = 0
    reused: int = 0  # positions of the prompt that had been read before
    generated: int = 0
    kv_bytes: int = 0  # of the row at its end, with what it shares; together, the most of any
    first_token: float | None = None  # the clock (time.perf_counter) when the first token was there

    def add(self, other: "Cost") -> None:
        self.queued += other.queued
        self.prefill += other.prefill
        self.decode += other.decode
        self.prefilled += other.prefilled
        self.reused += other.reused
        self.generated += other.generated
        self.kv_bytes = max(self.kv_bytes, other.kv_bytes)
        self.first_token = self.first_token if self.first_token is not None else other.first_token


@dataclass(frozen=True, eq=False)
class Prefilled:
    """A prompt that was read. `segments` is the whole row, to continue from; its last `own` are of these ids."""

    segments: tuple[KV, ...]
    own: int
    logits: Tensor | None = None  # (1 or new, vocab), where asked for
    cost: Cost = field(default_factory=Cost)

    @cached_property
    def kv(self) -> KV | None:
        """The entries of the new tokens alone; None if there are none, or if the model's cache can't travel."""
        own = self.segments[len(self.segments) - self.own :]
        return concat(own) if own else None


@dataclass(frozen=True, eq=False)
class Generated:
    """A reply. `segments` is the prompt and the reply, but for its last token where the model did not end by itself.

    `whole` is false where a reply that had to be JSON ended inside it.
    """

    ids: Sequence[int]
    text: str
    finish: Finish
    segments: tuple[KV, ...]
    cost: Cost = field(default_factory=Cost)
    whole: bool = True


class KVUse(NamedTuple):
    """An engine's KV memory, in bytes."""

    budget: int
    used: int = 0
    prefixes: int = 0  # of what is used: kept of earlier prompts, and given up first
    peak: int = 0
