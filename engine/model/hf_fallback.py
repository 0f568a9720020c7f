"""Fallback for models whose cache can't travel: each row runs alone, with the cache that transformers gives it.

It serves models that the packed forward pass can't compute, over text edges only. A row's cache is whatever the model
returns; a model that keeps state on its modules has it swapped in for each row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ..kv.cache import RowCache
from .devices import home_of
from .forward import Row

__all__ = ["FallbackCache", "fallback_forward"]

_NAMES = ("cache", "past_key_values", "cache_params", "state")  # of caches, in what models take and what they give
_Place = tuple[nn.Module, str]  # a module and its attribute


class FallbackCache(RowCache):
    """Holds the model's own cache of one row; has no segments to share."""

    def __init__(self) -> None:
        super().__init__()
        self.own: Any = None
        self.on_modules: dict[_Place, Any] = {}

    @property
    def next_position(self) -> int:
        return self._used

    def grew(self, new: int) -> None:
        """Note that the model's cache has read `new` more tokens."""
        self._used += new


def fallback_forward(network: Any, rows: Sequence[Row]) -> list[Tensor | None]:
    """As `forward`, one row after the other: by row the logits that were asked for, (asked, vocab), or None."""
    return [_run(network, row) for row in rows]


def _run(network: Any, row: Row) -> Tensor | None:
    cache = row.cache
    assert isinstance(cache, FallbackCache)
    habits = _habits.get(network) or _learn(network, row)
    if cache.own is None and habits.wants_cache:
        cache.own = DynamicCache(config=network.config)
    for (module, name), initial in habits.on_modules.items():
        setattr(module, name, cache.on_modules.get((module, name), initial))
    out = network(**_inputs(network, row, cache.own))
    cache.on_modules = {(module, name): getattr(module, name) for module, name in habits.on_modules}
    cache.own = _cache_of(out) or cache.own
    cache.grew(len(row.ids))
    logits: Tensor = out.logits[0]
    assert isinstance(row.logits, str)
    return {"none": None, "last": logits[-1:], "all": logits[-len(row.ids) :]}[row.logits]


@dataclass(frozen=True)
class _Habits:
    """What a model does with its cache."""

    wants_cache: bool  # it is given an empty one, and returns none that it made itself
    on_modules: dict[_Place, Any] = field(default_factory=dict)  # where it keeps a state, and what is there at first


_habits: "WeakKeyDictionary[nn.Module, _Habits]" = WeakKeyDictionary()


def _learn(network: Any, row: Row) -> _Habits:
    """Read the first row once without a cache: most models make one, and some change attributes of their modules."""
    before = _attributes(network)
    made = _cache_of(network(**_inputs(network, row, None)))
    after = _attributes(network)
    changed = {place: before.get(place) for place, value in after.items() if before.get(place) is not value}
    _habits[network] = _Habits(made is None, changed)
    return _habits[network]


def _attributes(network: nn.Module) -> dict[_Place, Any]:
    """Tensors that are plain attributes of modules: no weights, no buffers."""
    return {
        (module, name): value
        for module in network.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    }


def _inputs(network: Any, row: Row, cache: Any) -> dict[str, Any]:
    """As `generate` calls the model."""
    device, start = home_of(network), row.cache.next_position
    inputs: dict[str, Any] = {"input_ids": torch.tensor([list(row.ids)], device=device), "use_cache": True}
    parameters = _parameters(type(network).forward)
    if "position_ids" in parameters:
        inputs["position_ids"] = torch.arange(start, start + len(row.ids), device=device)[None]
    if cache is not None:
        if (name := next((name for name in _NAMES if name in parameters), None)) is None:
            raise TypeError("it takes no cache")
        inputs[name] = cache
    return inputs


@lru_cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(signature(forward).parameters)


def _cache_of(out: Any) -> Any:
    """The cache that a model returns, under whatever name; None where it returns none."""
    return next((found for name in _NAMES if (found := getattr(out, name, None)) is not None), None)
