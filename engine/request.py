"""What is asked of an engine, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from .kv import KV

__all__ = ["Cost", "Generated", "Prefilled"]


@dataclass
class Cost:
    """Seconds and tokens that a request took. A step's seconds count in full for every row that took part in it."""

    queued: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    prefilled: int = 0
    generated: int = 0
    first_token: float | None = None  # the clock (time.perf_counter) when the first token was there

    def add(self, other: "Cost") -> None:
        self.queued += other.queued
        self.prefill += other.prefill
        self.decode += other.decode
        self.prefilled += other.prefilled
        self.generated += other.generated
        self.first_token = self.first_token if self.first_token is not None else other.first_token


@dataclass(frozen=True, eq=False)
class Prefilled:
    """A prompt that was read. `segments` is the whole row, to continue from; `kv`, what this request computed of it."""

    segments: tuple[KV, ...]
    kv: KV | None
    logits: Tensor | None = None  # (1 or new, vocab), where asked for
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, eq=False)
class Generated:
    """A reply. `segments` is the prompt and the reply, but for its last token where the model did not end by itself.

    `whole` is false where a reply that had to be JSON ended inside it.
    """

    ids: Sequence[int]
    text: str
    finish: Literal["eos", "stop", "length"]
    segments: tuple[KV, ...]
    cost: Cost = field(default_factory=Cost)
    whole: bool = True
