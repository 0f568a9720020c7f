"""The state of one request at work in an engine: its row, its pending tokens, its results so far."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from cachegraph.errors import ModelError

from ..kv.cache import LayerKV, RowCache
from ..model.attention import OnLayer
from ..model.hf_fallback import FallbackCache
from ..request import Cost
from ..sampling.reply import ReplyState
from .kv_offload import SwappedState, SwappedTail
from .loop_bridge import Mailbox
from .request_context import RequestContext, current_context

__all__ = ["RequestState"]


@dataclass(eq=False)
class RequestState:
    """One request and its row: what it asks for, how far the engine is with it, and what came of it."""

    cache: RowCache
    pending: list[int]  # tokens that are known and not yet computed
    mailbox: "Mailbox[RequestState | str]"
    logits_wanted: Literal["none", "last", "all"] = "none"
    positions: Tensor | None = None  # (pending,) int64, of the tokens; None: consecutive after the cache
    override: Sequence[LayerKV] | None = None  # by layer, (1, kv_heads, pending, head_dim): written instead of its own
    on_layer: OnLayer | None = None
    layers: int | None = None  # number of the model's first layers to compute; None: all
    before: Sequence[int] = ()  # the tokens of what it continues from, if they are known
    asked: int = field(init=False)  # how many tokens were pending at first
    ids: list[int] | None = None  # all of its prompt, if it can be read again
    length: int = 0  # of the whole row; set if the model's RoPE depends on it
    reply: ReplyState | None = None  # where the row generates
    streams: bool = False  # post its text piece by piece; each piece wakes an event loop
    sampled: int | None = None  # the token of the last step, until `reply` takes it

    position_bytes: int = 0  # of one entry in the layers that are computed
    short: bool = False  # few enough tokens for the decoding kernels
    context: RequestContext = field(default_factory=current_context)
    arrived: float = field(default_factory=time.perf_counter)
    started: bool = False
    cost: Cost = field(default_factory=Cost)
    logits: list[Tensor] = field(default_factory=list)  # of each chunk, (1 or tokens, vocab)
    error: BaseException | None = None
    cancelled: bool = False
    swapped: SwappedTail | None = None  # the tail, while the row waits for memory
    swapped_state: SwappedState | None = None  # the same of its recurrent state, if it has one
    admitted: int = 0  # its place in the order of admission
    block_digests: list[bytes] = field(default_factory=list)  # by whole block of a plain prompt, its digest

    def __post_init__(self) -> None:
        self.asked = len(self.pending)

    @property
    def remaining(self) -> int:
        return len(self.pending)

    @property
    def run(self) -> object:
        return self if self.context.run is None else self.context.run

    @property
    def depth(self) -> int:
        return self.context.depth

    @property
    def holds(self) -> bool:
        return self.context.holds and self.context.run is not None

    @property
    def is_plain(self) -> bool:
        """Whether it is a prompt as the model alone reads it: from position 0 on, without overrides."""
        altered = self.cache.segments or self.positions is not None or self.override is not None
        return self.context.reuse and not altered

    @property
    def can_swap(self) -> bool:
        return not isinstance(self.cache, FallbackCache)

    def swap_out(self) -> None:
        """Move the tail out of the device's memory. Raises ModelError if there is no room for it there."""
        try:
            self.swapped = SwappedTail(self.cache.take_tail(), self.cache.used)
            if self.cache.state is not None:
                self.swapped_state = SwappedState(self.cache.state)
                self.cache.put_state(None)
        except OSError as error:
            raise ModelError(
                f"KV memory is full, and a waiting row's cache can't be put into {tempfile.gettempdir()!r}: "
                f"{error.strerror}; free room there, set TMPDIR, or run fewer agents at a time"
            ) from error

    def swap_in(self) -> None:
        """Bring it back, with room for the cache's capacity."""
        assert self.swapped is not None
        self.cache.put_tail(self.swapped.restore(self.cache.capacity))
        if self.swapped_state is not None:
            self.cache.put_state(self.swapped_state.restore())
        self.swapped = self.swapped_state = None
