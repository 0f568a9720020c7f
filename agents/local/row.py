"""AgentRow: entries computed so far, tokens still to compute, and the cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cachegraph.channels.cache.fused_decode import ReplySharers
from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.payload import Origin
from cachegraph.engine.kv.cache import KV
from cachegraph.engine.request import Cost

from ..base import FinishReason, Timing, Tokens

__all__ = ["AgentRow"]


@dataclass(eq=False)
class AgentRow:
    """A row of a model, from an agent's prompt to its reply."""

    segments: tuple[KV, ...] = ()  # computed; each (1, kv_heads, positions, head_dim) by layer
    pending: list[int] = field(default_factory=list)  # tokens after the segments, not computed yet
    positions: Tensor | None = None  # (pending,) int64; None: consecutive to the segments
    ids: list[int] = field(default_factory=list)  # of the whole row, including pending tokens
    origins: list[Origin | None] = field(default_factory=list)  # by token of `ids`
    layers: int | None = None  # number of the model's leading layers that its entries have; None: all
    sharers: ReplySharers | None = None  # sharers that also correct the reply
    corrected: bool = False  # whether a fuser has changed any entry
    text: str = ""
    data: Any = None  # the reply as a JSON value, if a schema requires one
    finish: FinishReason | None = None  # why the reply ended
    ending: str = ""  # the prompt's text after its last slot
    timing: Timing = field(default_factory=Timing)
    tokens: Tokens = field(default_factory=Tokens)

    def add_cost(self, cost: Cost) -> None:
        """Add the cost of a request to the engine."""
        self.timing.queued += cost.queued
        self.timing.prefill += cost.prefill
        self.timing.decode += cost.decode
        self.tokens.prefilled += cost.prefilled
        self.tokens.generated += cost.generated
        self.tokens.reused += cost.reused
        self.tokens.kv_bytes = max(self.tokens.kv_bytes, cost.kv_bytes)

    @property
    def can_reopen(self) -> bool:
        """Whether `reopen` is possible: the last token's entry is not part of a recurrent state."""
        return bool(self.segments) and (self.layers is not None or self.segments[-1].state is None)

    def reopen(self) -> None:
        """Drop the last token's entry and make the token pending, so that decoding can start from it.

        Of a row without entries in the last layers, which has only tokens of its own, drop everything.
        """
        if self.layers is not None:
            self.segments, self.pending, self.positions, self.layers = (), list(self.ids), None, None
            return
        *front, last = self.segments
        self.segments = (*front, last.select(slice(0, -1)))
        self.pending, self.positions = self.ids[-1:], last.positions[-1:]

    def expect(self, reply: Sequence[int]) -> None:
        """Append the tokens of a known reply to the pending ones."""
        if self.positions is not None:
            following = self.positions[-1] + 1 + torch.arange(len(reply))
            self.positions = torch.cat([self.positions, following.to(self.positions)])
        self.pending = [*self.pending, *reply]

    def sent_cache(self, identity: str, sender: str, layers: int | None = None) -> SentCache:
        """The row, or its first `layers` layers, as a cache for receivers. `identity` is the model's.

        Each layer is (1, kv_heads, positions, head_dim); the tensors are shared, not copied.
        """
        segments = self.segments if layers is None else tuple(kv.leading_layers(layers) for kv in self.segments)
        return SentCache(segments, self.ids, self.origins, identity, sender, corrected=self.corrected)
