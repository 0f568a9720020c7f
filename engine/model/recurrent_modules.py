"""Finds the modules of a model that keep recurrent states, and lets them run row by row.

They are found by what they do, not by name: a few tokens are read with a cache that notes which module updates a state.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from .attention import PackedCache
from .devices import home_of
from .forward import cache_argument
from .model_config import ModelInfo
from .packed_states import ModuleCall

__all__ = ["recurrent_modules", "split_by_rows"]

_AHEAD = 2  # tokens that are read behind a state


def recurrent_modules(network: Any, info: ModelInfo, ids: list[int]) -> tuple[tuple[str, bool], ...] | str:
    """Their names, and of each whether it has to read a token at a time; or why their states can't be told apart.

    A few tokens, `ids`, are read to find them. Some models forget a state where they are given several tokens with it,
    in transformers itself: what is read behind a state is then read token by token.
    """
    elsewhere = f"{info.model_type!r} models keep their recurrent state elsewhere than in transformers' cache"
    running: list[nn.Module] = []
    cache = _Noting(network.config, running)
    inputs = {cache_argument(network): cache, "use_cache": True}
    tokens = torch.tensor([ids], device=home_of(network))
    try:
        with _following(network, running):
            network(input_ids=tokens[:, :-_AHEAD], **inputs)
        if cache.updated != {layer for layer, count in enumerate(info.states) if count}:
            return elsewhere
        with _tried(cache.modules) as trials:
            network(input_ids=tokens[:, -_AHEAD:], **inputs)
    except torch.OutOfMemoryError:  # says nothing of the model
        raise
    except Exception:  # a boundary: whatever a foreign model raises, it takes no such cache
        return elsewhere
    names = {module: name for name, module in network.named_modules()}
    return tuple((names[module], trials[module].forgets) for module in cache.modules)


def split_by_rows(network: nn.Module, modules: Iterable[tuple[str, bool]]) -> None:
    """Let these modules run row by row where they are given the cache of packed rows; as ever where they are not."""
    for name, by_token in modules:
        module = network.get_submodule(name)
        module.forward = _by_rows(module.forward, by_token)


def _by_rows(forward: Callable[..., Any], by_token: bool) -> Callable[..., Any]:
    def by_rows(*args: Any, **named: Any) -> Any:
        for argument in (*args, *named.values()):
            if isinstance(argument, PackedCache) and argument.states is not None:
                return argument.states.run(ModuleCall(forward, args, named), argument, by_token=by_token)
        return forward(*args, **named)

    return by_rows


class _Noting(DynamicCache):  # type: ignore[misc]
    """A cache that notes which module updates which layer's recurrent states."""

    def __init__(self, config: Any, running: Sequence[nn.Module]):
        super().__init__(config=config)
        self.modules: dict[nn.Module, None] = {}
        self.updated: set[int] = set()
        self._running = running

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, *args: Any, **named: Any) -> Any:
        self._note(layer_idx)
        return super().update_conv_state(conv_states, layer_idx, *args, **named)

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, *args: Any, **named: Any) -> Any:
        self._note(layer_idx)
        return super().update_recurrent_state(recurrent_states, layer_idx, *args, **named)

    def _note(self, layer: int) -> None:
        if self._running:
            self.modules.setdefault(self._running[-1])
        self.updated.add(layer)


@contextmanager
def _following(network: nn.Module, running: list[nn.Module]) -> Iterator[None]:
    """While this is open, `running` is the modules that are running, the innermost last."""

    def begin(module: nn.Module, _: Any) -> None:
        running.append(module)

    def end(*_: Any) -> None:
        running.pop()

    hooks = []
    for module in network.modules():
        hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)]
    try:
        yield
    finally:
        running.clear()
        for hook in hooks:
            hook.remove()


@contextmanager
def _tried(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, "_Trial"]]:
    """While this is open, the modules try out with every call what difference a state makes."""
    trials = {module: _Trial(module.forward) for module in modules}
    for module, trial in trials.items():
        module.forward = trial
    try:
        yield trials
    finally:
        for module, trial in trials.items():
            module.forward = trial.forward


class _Trial:
    """A module's forward that is also called with its recurrent states altered."""

    def __init__(self, forward: Callable[..., Any]):
        self.forward = forward
        self.forgets = False  # no call gave anything else with another state, not even in the last bit

    def __call__(self, *args: Any, **named: Any) -> Any:
        outs, had_state = [], False
        for factor in (1, 2):
            layers: list[_Scaled] = []

            def replaced(given: Any, factor: int = factor, layers: list[_Scaled] = layers) -> Any:
                if not isinstance(given, _Noting):
                    return given
                other = copy(given)
                other.layers = _Scaled(given.layers, factor)
                layers.append(other.layers)
                return other

            out = self.forward(*map(replaced, args), **{name: replaced(argument) for name, argument in named.items()})
            outs.append([*_tensors(out), *(state for scaled in layers for state in scaled.recurrent())])
            had_state = had_state or any(scaled.had_state for scaled in layers)
        self.forgets = self.forgets or (had_state and all(map(torch.equal, *outs)))
        return self.forward(*args, **named)


class _Scaled(list[Any]):
    """Copies of layers, made when asked for, with their recurrent states scaled."""

    def __init__(self, layers: Sequence[Any], factor: int):
        super().__init__(layers)
        self._factor = factor
        self._made: dict[int, Any] = {}
        self.had_state = False

    def __getitem__(self, index: Any) -> Any:
        layer = super().__getitem__(index)
        if not isinstance(layer, LinearAttentionCacheLayerMixin):
            return layer
        if index not in self._made:
            self._made[index] = deepcopy(layer)
            for number, state in self._made[index].recurrent_states.items():
                if state is not None:
                    self._made[index].recurrent_states[number] = state * self._factor
                    self.had_state = True
        return self._made[index]

    def recurrent(self) -> list[Tensor]:
        return [
            state for layer in self._made.values() for state in layer.recurrent_states.values() if state is not None
        ]


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, tuple | list):
        for item in out:
            yield from _tensors(item)
