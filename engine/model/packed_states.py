"""The recurrent states of a packed forward pass: each row runs its recurrent modules with its own state.

All rows' new tokens stand side by side in one sequence. Modules that touch transformers' recurrent cache are wrapped
(`recurrent_modules.split_by_rows`): every row that reads a prompt runs by itself, rows that decode one token run as one
batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from ..kv.cache import RowCache
from ..kv.recurrent_state import LayerState, RecurrentState
from .attention import PackedCache

__all__ = ["ModuleCall", "PackedStates"]

_HALF = (torch.bfloat16, torch.float16)


class _Layer(LinearAttentionLayer):  # type: ignore[misc]
    """transformers' recurrent layer of some rows. Replaces states instead of overwriting them."""

    def take(self, states: Sequence[LayerState], device: torch.device) -> None:
        """Begin with these rows' states."""
        for kind, known, held in (
            (0, self.is_conv_states_initialized, self.conv_states),
            (1, self.is_recurrent_states_initialized, self.recurrent_states),
        ):
            for number in range(self.number_of_states):
                rows = [tensor for state in states for tensor in state[kind][number : number + 1] if tensor is not None]
                if len(rows) < len(states):
                    continue
                held[number] = torch.cat([tensor.to(device) for tensor in rows])
                known[number] = self.has_previous_state[number] = True
                if kind == 0:
                    self.conv_kernel_size[number] = held[number].shape[-1]
                    self.dtype, self.device = held[number].dtype, device

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        before = self.recurrent_states[state_idx]
        new = recurrent_states if before is None else recurrent_states.to(before.dtype)
        self.recurrent_states[state_idx], self.is_recurrent_states_initialized[state_idx] = new, True
        return new

    def states(self) -> LayerState:
        """What it holds, (rows, ...) each."""
        numbers = range(self.number_of_states)
        return LayerState(*(tuple(held[n] for n in numbers) for held in (self.conv_states, self.recurrent_states)))


class _Layers(list[_Layer | None]):
    """Layers that are made when first asked for."""

    def __init__(self, count: int, make: Callable[[int], _Layer]):
        super().__init__([None] * count)
        self._make = make

    def __getitem__(self, index: Any) -> Any:
        layer = super().__getitem__(index)
        if layer is None:
            layer = self._make(index)
            self[index] = layer
        return layer


class ModuleCall(NamedTuple):
    """A call of a module's forward."""

    forward: Callable[..., Any]
    args: Sequence[Any]
    named: Mapping[str, Any]


class PackedStates:
    """The recurrent states of the rows of one forward pass, whose tokens stand side by side."""

    def __init__(self, caches: Sequence[RowCache], counts: Sequence[int], numbers: Sequence[int], dtype: torch.dtype):
        self._caches = caches
        self._numbers = numbers  # of states, by layer of the model
        ends = torch.tensor(counts).cumsum(0).tolist()
        self._spans = [(end - count, end) for end, count in zip(ends, counts, strict=True)]
        self._new: list[dict[int, LayerState]] = [{} for _ in caches]
        self._groups = list(self._grouped(dtype in _HALF))

    def _grouped(self, half: bool) -> Iterator[list[int]]:
        """Rows that run together: those that decode one token; every other row runs alone.

        A lone decoding row of a 16-bit model runs twice in one batch: kernels round one row and several differently.
        """
        decoding = []
        for row, (start, end) in enumerate(self._spans):
            if end - start == 1 and self._caches[row].state is not None:
                decoding.append(row)
            else:
                yield [row]
        if decoding:
            yield decoding * 2 if half and len(decoding) == 1 else decoding

    def run(self, call: "ModuleCall", packed: PackedCache, *, by_token: bool) -> Any:
        """What a module gives for all rows: an entry a token, side by side.

        `by_token`: of several new tokens it would read only the first with the state, so it is given one at a time.
        """
        parts: list[Any] = [None] * len(self._spans)
        for rows in self._groups:
            layers = _Layers(len(self._numbers), lambda layer, rows=rows: self._layer(layer, rows))  # type: ignore[misc]
            own = PackedCache(layers)
            shares = [self._spans[row] for row in rows]
            if by_token and len(rows) == 1 and self._caches[rows[0]].state is not None:
                shares = [(token, token + 1) for token in range(*shares[0])]
                outs = [self._give(call, [share], packed, own) for share in shares]
                out = _side_by_side([_row_of(token_out, 0, 1, 1) for token_out in outs])
            else:
                out = self._give(call, shares, packed, own)
            self._file(layers, rows)
            for place, row in enumerate(rows):
                start, end = self._spans[row]
                parts[row] = _row_of(out, place, len(rows), end - start)
        return _side_by_side(parts)

    def _give(self, call: "ModuleCall", spans: Sequence[tuple[int, int]], packed: PackedCache, own: PackedCache) -> Any:
        tokens = self._spans[-1][1]
        args = (_share(argument, spans, tokens, packed, own) for argument in call.args)
        return call.forward(
            *args, **{name: _share(argument, spans, tokens, packed, own) for name, argument in call.named.items()}
        )

    def _layer(self, layer: int, rows: Sequence[int]) -> _Layer:
        joined = _Layer(number_of_states=self._numbers[layer])
        states = [state.layers.get(layer) for row in rows if (state := self._caches[row].state) is not None]
        known = [layer_state for layer_state in states if layer_state is not None]
        if len(known) == len(rows):
            first = next(tensor for part in known[0] for tensor in part if tensor is not None)
            joined.take(known, first.device)
        return joined

    def _file(self, layers: _Layers, rows: Sequence[int]) -> None:
        for index, layer in enumerate(list.__iter__(layers)):
            if layer is None:
                continue
            held = layer.states()
            for place, row in enumerate(rows):
                one = held if len(rows) == 1 else held.map(lambda tensor, at=place: tensor[at : at + 1])  # type: ignore[misc]
                self._new[row][index] = one

    def commit(self) -> None:
        """The forward pass is over, and the caches have its entries: their states are the new ones."""
        for cache, new in zip(self._caches, self._new, strict=True):
            if new:
                before = cache.state.layers if cache.state is not None else {}
                cache.put_state(RecurrentState(len(cache), {**before, **new}))


def _share(argument: Any, spans: Sequence[tuple[int, int]], tokens: int, packed: PackedCache, own: PackedCache) -> Any:
    """A module's argument for some rows, whose tokens are at `spans`: theirs of what has an entry a token."""
    if argument is packed:
        return own
    if isinstance(argument, tuple | list):
        return type(argument)(_share(item, spans, tokens, packed, own) for item in argument)
    if not isinstance(argument, Tensor) or argument.ndim < 2 or argument.shape[:2] != (1, tokens):
        return argument
    if len(spans) > 1:
        return argument[0, [start for start, _ in spans]][:, None]  # (rows, 1, ...)
    return argument[:, slice(*spans[0])]


def _row_of(out: Any, place: int, rows: int, tokens: int) -> Any:
    """Of what a module gives for several rows, one row's."""
    if isinstance(out, tuple | list):
        return tuple(_row_of(item, place, rows, tokens) for item in out)
    if not isinstance(out, Tensor):
        return out
    part = out if rows == 1 else out[place : place + 1]
    if part.ndim < 2 or part.shape[:2] != (1, tokens):
        raise RuntimeError("a recurrent module gives something else than an entry a token")
    return part


def _side_by_side(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, tuple):
        return tuple(_side_by_side(items) for items in zip(*parts, strict=True))
    return torch.cat(list(parts), dim=1) if isinstance(first, Tensor) else first
