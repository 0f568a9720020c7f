"""Rows of a model whose cache can't travel: each runs alone, with the cache that transformers gives it.

Serves models with recurrent layers and others that the packed forward pass can't, over text edges only.
"""

from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .devices import home_of
from .forward import Row, cache_argument
from .kv import RowCache

__all__ = ["NativeCache", "native_forward"]


class NativeCache(RowCache):
    """Holds transformers' own cache of one row; has no segments to share."""

    def __init__(self) -> None:
        super().__init__()
        self.state: Any = None

    @property
    def next_position(self) -> int:
        return self._used

    def grew(self, new: int) -> None:
        """transformers' cache has read so many more tokens."""
        self._used += new


def native_forward(network: Any, rows: Sequence[Row]) -> list[Tensor | None]:
    """As `forward`, one row after the other."""
    return [_run(network, row) for row in rows]


@cache
def _takes_positions(forward: Callable[..., Any]) -> bool:
    return "position_ids" in signature(forward).parameters


def _run(network: Any, row: Row) -> Tensor | None:
    kept = row.cache
    assert isinstance(kept, NativeCache)
    ids = torch.tensor([list(row.ids)], device=home_of(network))
    if kept.state is None:
        kept.state = DynamicCache(config=network.config)
    inputs: dict[str, Any] = {"input_ids": ids, cache_argument(network): kept.state}
    if _takes_positions(type(network).forward):
        begin = kept.next_position
        inputs["position_ids"] = torch.arange(begin, begin + len(row.ids), device=ids.device)[None]
    out = network(**inputs, use_cache=True)
    kept.grew(len(row.ids))
    logits: Tensor = out.logits[0]
    assert isinstance(row.logits, str)
    return {"none": None, "last": logits[-1:], "all": logits[-len(row.ids) :]}[row.logits]
