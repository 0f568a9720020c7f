"""Attention over rows of different lengths without padding.

All rows' new tokens stand side by side in one sequence, (1, tokens), so linear layers see one dense batch. Only
attention tells rows apart: each row's queries attend to that row's own cache. transformers passes every model's
attention to a named function; ours is registered as `cachegraph` and finds the rows of the running forward pass in a
context variable. There is no mask over the batch, and a row's numbers don't depend on its neighbours' lengths.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from ..kv.cache import LayerKV, RowCache

if TYPE_CHECKING:
    from .packed_states import PackedStates

__all__ = [
    "NAME",
    "Attends",
    "ExpandsCache",
    "OnLayer",
    "PackedCache",
    "PackedRows",
    "StopForward",
    "Watch",
    "attending",
    "packed_rows",
    "watching",
]

NAME = "cachegraph"
OnLayer = Callable[[int, LayerKV], None]


Watch = Callable[[int, Tensor, LayerKV, float, float | None, Tensor | None], None]  # as Attends.attend is called


class StopForward(Exception):
    """Raised within a forward pass once it has computed the layers that are wanted."""


class ExpandsCache(Exception):
    """Raised where a model does not attend to what it caches, but to what it computes from that (MLA)."""


class Attends(Protocol):
    """The rows of one forward pass, whose tokens stand side by side."""

    def cached(self, new: LayerKV) -> LayerKV:
        """Cache a layer's entries of the new tokens, (1, kv_heads, tokens, head_dim) each.

        Returns those that the model computes with.
        """

    def length(self, layer: int) -> int:
        """The number of entries that the model sees in a layer's cache."""

    def attend(
        self,
        layer: int,
        query: Tensor,  # (1, heads, tokens, head_dim)
        given: LayerKV,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,  # (heads,)
    ) -> Tensor:
        """Append the new entries to each row's cache and attend to that: (1, tokens, heads, head_dim).

        `given` is what `cached` returned, to this layer or to an earlier one whose entries it shares.
        """


@dataclass(eq=False)
class PackedRows:
    """The rows of one forward pass, in the order of their tokens, and what each attends to."""

    caches: Sequence[RowCache]
    positions: Sequence[Tensor]  # by row: (new,) RoPE positions of its new tokens
    windows: Sequence[int | None]  # by decoder layer
    overrides: Sequence[Sequence[LayerKV] | None] = ()  # by row: K and V to use for the new tokens instead of their own
    sees: Sequence[Tensor | None] = ()  # by row: (new, new) of bool, instead of causality among the new tokens
    on_layer: Sequence[OnLayer | None] = ()  # by row: called with each layer's entries as soon as they are computed
    layers: int | None = None  # number of layers after which to stop; None: all
    expands: bool = False  # the model computes its keys and values from all cached entries
    reversed: bool = False  # then the second cached tensor has RoPE, and counts as keys
    alone: bool = False  # a single row, to which the model attends by its own code
    states: "PackedStates | None" = None  # where layers keep a recurrent state
    _new: list[tuple["ref[Tensor]", "ref[Tensor]"]] = field(default_factory=list)  # by layer that caches, of this pass
    _filed: int = 0  # layers whose new entries have been appended
    _masks: dict[tuple[int, int | None, torch.device], "Tensor | None"] = field(default_factory=dict)

    def mask(self, row: int, window: int | None, device: torch.device) -> "Tensor | None":
        """The mask of a row, (new tokens, entries) of bool: which entries each new token sees; None: causal alone."""
        key = (row, window, device)
        if key not in self._masks:
            self._masks[key] = self._build_mask(row, window, device)
        return self._masks[key]

    def _build_mask(self, row: int, window: int | None, device: torch.device) -> "Tensor | None":
        past, new = len(self.caches[row]), len(self.positions[row])
        entries = torch.cat([self.caches[row].positions, self.positions[row]])  # (entries,)
        near = None
        if window is not None and int(entries.max() - entries.min()) >= window:
            near = self.positions[row][:, None] - entries[None, :] < window  # (new, entries)
        sees = self.sees[row] if self.sees else None
        if new == 1:
            return near.to(device) if near is not None else None
        if past == 0 and near is None and sees is None:
            return None
        causal = torch.ones(new, past + new, dtype=torch.bool).tril(past)
        if sees is not None:
            causal[:, past:] = sees
        return (causal if near is None else causal & near).to(device)

    def cached(self, new: LayerKV) -> LayerKV:
        """What the model gets back from its cache for the new tokens, (1, kv_heads, tokens, head_dim).

        That is the new entries themselves, which `attend` files; where the model computes with all entries of all
        rows, those.
        """
        if not (self.expands or self.alone):
            self._new.append((ref(new.keys), ref(new.values)))
            return new
        parts = self._file(LayerKV(*reversed(new)) if self.reversed else new)
        joined = [torch.cat(tensors, dim=2) if len(parts) > 1 else tensors[0] for tensors in zip(*parts, strict=True)]
        return LayerKV(*(reversed(joined) if self.reversed else joined))

    def attend(
        self, layer: int, query: Tensor, given: LayerKV, scale: float, softcap: float | None, sinks: Tensor | None
    ) -> Tensor:
        """Attend row by row, with the shapes of `Attends`: `query` is (1, heads, tokens, head_dim).

        Raises StopForward in the last layer that is wanted.
        """
        known = layer is not None and layer < len(self.windows)  # a module that serves several layers may be none
        window = self.windows[layer] if known else None
        out, start = [], 0
        for row, past in enumerate(self._entries_of(given)):
            end = start + len(self.positions[row])
            mask = self.mask(row, window, query.device)
            out.append(_attend_row(query[:, :, start:end], past, mask, scale, softcap, sinks))
            start = end
        return out[0] if len(out) == 1 else torch.cat(out, dim=1)

    def length(self, layer: int) -> int:
        """How many entries the model finds in its cache, where it attends by itself; 0 elsewhere."""
        if not self.alone:
            return 0
        return len(self.caches[0]) + (len(self.positions[0]) if layer < self._filed else 0)

    def _entries_of(self, layer_kv: LayerKV) -> Sequence[LayerKV]:
        """By row: all that a layer attends to, its own entries or those of a layer that it shares them with."""
        if self.expands:
            lengths = [len(cache) + len(at) for cache, at in zip(self.caches, self.positions, strict=True)]
            return [
                LayerKV(*pair)
                for pair in zip(*(torch.split(tensor, lengths, dim=2) for tensor in layer_kv), strict=True)
            ]
        index = len(self._new) - 1
        while index >= 0 and self._new[index][0]() is not layer_kv.keys:  # the layer's own come last
            index -= 1
        if not 0 <= index <= self._filed or self._new[index][1]() is not layer_kv.values:
            raise ExpandsCache
        return self._file(layer_kv) if index == self._filed else [cache.entries(index) for cache in self.caches]

    def _file(self, new: LayerKV) -> list[LayerKV]:
        """By row: all entries of the next layer that caches. Raises StopForward in the last layer that is wanted."""
        index, seen, start = self._filed, list[LayerKV](), 0
        self._filed += 1
        for row, cache in enumerate(self.caches):
            end = start + len(self.positions[row])
            own = new.select(slice(start, end))
            if self.overrides and (override := self.overrides[row]) is not None:
                own = override[index]
            seen.append(cache.append(index, *own))
            if self.on_layer and (call := self.on_layer[row]) is not None:
                call(index, seen[-1])
            start = end
        if self._filed == self.layers:
            raise StopForward
        return seen


_running: ContextVar[Attends] = ContextVar("cachegraph_rows")
_watch: ContextVar["Watch | None"] = ContextVar("cachegraph_watch", default=None)


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Within the block, `watch` is called with the arguments of every call of a model's attention."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


@contextmanager
def attending(rows: Attends) -> Iterator["PackedCache"]:
    """Within the block, models whose attention is `cachegraph` attend by these rows; yields their cache object."""
    token = _running.set(rows)
    try:
        yield PackedCache()
    finally:
        _running.reset(token)


@contextmanager
def packed_rows(rows: PackedRows) -> Iterator["PackedCache"]:
    """The same for rows of any lengths, whose caches are appended to."""
    for cache, positions in zip(rows.caches, rows.positions, strict=True):
        cache.reserve(positions)
    with attending(rows) as passed_through:
        passed_through.states = rows.states
        yield passed_through
    for cache in rows.caches:
        cache.commit()
    if rows.states is not None:
        rows.states.commit()


class PackedCache(Cache):  # type: ignore[misc]
    """What transformers calls a cache: it hands new K and V to the rows of the running pass.

    A recurrent module is given one that has `layers`, with the states of some of the rows.
    """

    def __init__(self, layers: list[Any] | None = None) -> None:
        super().__init__(layers=[] if layers is None else layers)
        self.states: PackedStates | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Cache a layer's new keys and values, (1, kv_heads, tokens, head_dim) each; returns those to compute with."""
        if self.layers:
            raise RuntimeError("a recurrent module attends, so its rows can't be told apart")
        return _running.get().cached(LayerKV(key_states, value_states))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return _running.get().length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return _running.get().length(layer_idx) + query_length, 0


def _attend(
    module: Any,
    query: Tensor,  # (1, heads, tokens, head_dim)
    key: Tensor,  # (1, kv_heads, tokens, head_dim)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,  # (heads,) attention sinks
    **_: Any,
) -> tuple[Tensor, None]:
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    given = LayerKV(key, value)
    if (watch := _watch.get()) is not None:
        watch(module.layer_idx, query, given, scale, softcap, s_aux)
    return _running.get().attend(module.layer_idx, query, given, scale, softcap, s_aux).contiguous(), None


def _attend_row(
    query: Tensor, past: LayerKV, mask: Tensor | None, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """One row: (1, heads, new, head_dim) -> (1, new, heads, head_dim)."""
    _, heads, new, dim = query.shape
    groups = heads // past.keys.shape[1]
    if softcap is not None or sinks is not None:
        return _explicit(query, _repeat_heads(past, groups), mask, scale, softcap, sinks).transpose(1, 2)
    if mask is None and new > 1:
        return F.scaled_dot_product_attention(
            query, *_repeat_heads(past, groups), is_causal=True, scale=scale
        ).transpose(1, 2)
    if mask is None and query.dtype == torch.float32:  # to the bit what transformers computes; slower in 16 bits
        return F.scaled_dot_product_attention(query, *past, scale=scale, enable_gqa=True).transpose(1, 2)
    # The queries that share a KV head are stacked, so no K or V is repeated.
    packed = query.reshape(1, heads // groups, groups * new, dim)
    mask = mask.repeat(groups, 1) if mask is not None and groups > 1 else mask
    out = F.scaled_dot_product_attention(packed, *past, attn_mask=mask, scale=scale)
    return out.reshape(1, heads, new, -1).transpose(1, 2)


def _repeat_heads(past: LayerKV, groups: int) -> LayerKV:
    return past if groups == 1 else LayerKV(*(tensor.repeat_interleave(groups, 1) for tensor in past))


def _explicit(
    query: Tensor, past: LayerKV, mask: Tensor | None, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attention written out, for models that cap their scores or give each head a sink. (1, heads, new, head_dim)"""
    new = query.shape[2]
    scores = torch.matmul(query, past.keys.transpose(2, 3)) * scale  # (1, heads, new, entries)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None and new > 1:
        mask = torch.ones(new, new, dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(1, -1, new, 1).to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights[..., : past.values.shape[2]], past.values)


AttentionInterface.register(NAME, _attend)
