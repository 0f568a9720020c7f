"""RoPE whose frequencies depend on a row's length (longrope, dynamic): each row of a pass gets those of its own length.

transformers chooses them by the furthest position of a whole pass, so a prompt in chunks, or a short row beside a long
one, would get other frequencies than alone. Here the model's rotary module runs once for all rows of equal frequencies,
with one more position that tells it their length and whose angles are dropped. transformers' `generate` is the
reference: a prompt gets the frequencies of its whole length; if a reply grows beyond the border, some models drop their
cache and read the whole row again (`rereads`), and others continue with keys of both kinds.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["MIXED", "ByLength", "RowLength", "row_lengths", "watch_lengths"]

MIXED = -1  # factors of a row whose entries have several


class RowLength(NamedTuple):
    """A row's share of a pass: the number of its tokens, and the length of the row."""

    tokens: int
    length: int


@dataclass(frozen=True)
class ByLength:
    """How a model's frequencies depend on the length of a row."""

    border: int  # rows up to this length have the same
    each_length: bool  # behind it every length has its own; otherwise all have the same
    rereads: bool = False  # `generate` reads a row once more when it grows beyond the border

    def factors(self, length: int) -> int:
        """Equal for rows that have the same frequencies; 0 for those up to the border."""
        return 0 if length <= self.border else length if self.each_length else 1


_rows: ContextVar[Sequence[RowLength] | None] = ContextVar("cachegraph_row_lengths", default=None)


@contextmanager
def row_lengths(rows: Sequence[RowLength]) -> Iterator[None]:
    """While this is open, the tokens of a forward pass belong to these rows, side by side."""
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


def watch_lengths(network: nn.Module, cache_name: str) -> ByLength | None:
    """Let the rotary modules of a model heed `row_lengths`. None for a model whose RoPE looks at no length."""
    found = None
    for module in network.modules():
        if (how := _by_length(module)) is not None:
            found = how
            if not isinstance(module.forward, partial):
                module.forward = partial(_forward, module.forward, how)
    if found is None:
        return None
    return ByLength(found.border, found.each_length, _rereads(network, found.border, cache_name))


def _by_length(module: Any) -> ByLength | None:
    kinds = getattr(module, "rope_type", None)
    if kinds is None or isinstance(module, nn.Module) is False or not hasattr(module, "config"):
        return None
    parameters = getattr(module.config, "rope_parameters", None) or {}
    by_kind = {None: kinds} if isinstance(kinds, str) else dict(kinds)
    for name, kind in by_kind.items():
        about = parameters if name is None else parameters[name]
        if kind == "longrope":
            return ByLength(int(about["original_max_position_embeddings"]), each_length=False)
        if "dynamic" in kind:
            return ByLength(int(module.original_max_seq_len), each_length=True)
    return None


def _forward(own: Callable[..., Any], how: ByLength, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The rotary module's cosines and sines, (batch, tokens, rotary_dim) each."""
    rows = _rows.get()
    if rows is None or sum(row.tokens for row in rows) != position_ids.shape[-1]:
        return own(x, position_ids, *args, **kwargs)
    groups: dict[int, list[Tensor]] = {}  # by factors: which tokens
    lengths: dict[int, int] = {}
    start = 0
    for tokens, length in rows:
        factors = how.factors(length)
        groups.setdefault(factors, []).append(torch.arange(start, start + tokens))
        lengths[factors] = max(length, lengths.get(factors, 0))
        start += tokens
    joined_tables: list[Tensor] | None = None
    for factors, parts in groups.items():
        index = torch.cat(parts).to(position_ids.device)
        places = position_ids[..., index]
        last = torch.full_like(places[..., :1], lengths[factors] - 1)
        if how.each_length:
            own(x, torch.zeros_like(last), *args, **kwargs)  # forgets the longest row that it has met
        tables = [table[..., :-1, :] for table in own(x, torch.cat([places, last], dim=-1), *args, **kwargs)]
        if len(groups) == 1:
            return tuple(tables)
        joined_tables = joined_tables or [
            table.new_empty(*table.shape[:-2], start, table.shape[-1]) for table in tables
        ]
        for joined, part in zip(joined_tables, tables, strict=True):
            joined[..., index, :] = part
    return tuple(joined_tables or ())


class _Cache:
    """A cache of a given length, which is asked for nothing else."""

    def __init__(self, length: int):
        self._length = length

    def get_seq_length(self, *_: Any) -> int:
        return self._length


def _rereads(network: Any, border: int, cache_name: str) -> bool:
    """Whether `generate` drops the cache for the first token behind the border."""
    ids = torch.zeros(1, border + 1, dtype=torch.int64)
    try:
        inputs = network.prepare_inputs_for_generation(ids, **{cache_name: _Cache(border)})
    except Exception:  # a boundary: of the models that drop it none asks the cache for more
        return False
    return inputs.get(cache_name) is None
