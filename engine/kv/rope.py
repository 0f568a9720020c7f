"""Moving keys to other positions.

A key in a cache has been rotated by its position (RoPE): pairs of its numbers turn by angles that grow with the
position, each pair at a frequency of its own. So a key read at position p stands at position q after one more rotation,
by the difference of the two angles; values carry no position. Frequencies are the model's own. `compare` finds out
which of them a layer uses, for which part of its keys, and how it pairs their numbers: `move` must make of keys read at
one place what the model makes of the same tokens at another. A model that fails is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from cachegraph.errors import ModelError

from ..cpu.build import Kernels, kernels
from ..cpu.rope import KEPT, Angles, laid_out, turned
from ..model.model_config import ModelInfo
from ..torch_threads import for_small_operations
from .cache import KV, LayerKV

__all__ = ["OutOfReach", "Rotation"]

_EXACT = 1e-3  # of the norm: what float32 may differ by
_ROUNDING = 1e-7  # more, for each position of the distance: far out attention itself rounds its angles
_BACKWARDS = ", backwards"
_PAIRS: tuple[Literal["halves"], Literal["neighbours"]] = ("halves", "neighbours")
_HALF = (torch.bfloat16, torch.float16)
_NOISE = 3.0  # times as much as values differ by, where activations are rounded
_UNLIKE = 0.15  # of the norm: such values depend on their position
_INFINITE = 1e9
_AT_ONCE = 1 << 18  # elements: an operation on fewer is all overhead, one on more leaves the CPU's cache


class OutOfReach(ModelError):
    """Raised for keys that would be moved further than is exact."""


@dataclass(frozen=True, eq=False)
class _Turn:
    """How keys turn: the numbers from `begin` on, in pairs, each at its frequency."""

    frequencies: Tensor  # (pairs,) of float32, on the CPU: radians a position
    begin: int
    pairs: Literal["halves", "neighbours"]  # a number with that of the other half, or with the one beside it

    @property
    def width(self) -> int:
        return 2 * len(self.frequencies)

    def angles(self, positions: Tensor) -> Tensor:
        """(positions, pairs), rounded as the model rounds them, on the device of `positions`."""
        return positions[:, None].float() * self.frequencies.to(positions.device)

    def tables(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (1, positions, width), each where its number is."""
        wide = torch.cat([angles, angles], -1) if self.pairs == "halves" else angles.repeat_interleave(2, -1)
        return wide.cos()[None], wide.sin()[None]

    def between(self, old: Tensor, new: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The tables of the rotation of these keys from old to new positions, (positions,) each.

        Far away float32 rounds an angle by more than 16 bits round a key, and even nearby by more than float32 does.
        There the difference of two angles is taken as the model has rounded them, else the angle of the difference.
        """
        here, there = old.to(keys.device), new.to(keys.device)
        if keys.dtype in _HALF and not _is_far(old, new):
            return self.tables(self.angles(there - here))
        return self.tables(self.angles(there) - self.angles(here))

    def __call__(self, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(batch, kv_heads, positions, head_dim), turned by tables; computed in float32."""
        turning = keys[..., self.begin : self.begin + self.width].float()
        if self.pairs == "halves":
            first, second = turning.chunk(2, dim=-1)
            other = torch.cat([-second, first], dim=-1)
        else:
            other = torch.stack([-turning[..., 1::2], turning[..., 0::2]], dim=-1).flatten(-2)
        done = (turning * cos + other * sin).to(keys.dtype)
        if self.width == keys.shape[-1]:
            return done
        return torch.cat([keys[..., : self.begin], done, keys[..., self.begin + self.width :]], dim=-1)


class Rotation:
    """One model's RoPE, for moving cached keys. `why_not` says why this model's keys can't be moved, or is None."""

    def __init__(self, model: Any, info: ModelInfo):
        self._info = info
        self._frequencies = dict(_frequencies(model.get_decoder()))
        kinds = list(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or [])
        self._made: dict[tuple[str, int, str], _Turn] = {}
        # By layer, the ways that are not ruled out yet; None is no rotation at all.
        self._ways = [
            self._possible(shape.key_dim, kinds[layer] if layer < len(kinds) else "")
            for layer, shape in enumerate(info.shapes)
        ]
        self._tables: dict[_Turn, Angles] = {}
        self.why_not = info.why_no_cache
        self.reach: int | None = None  # keys move as they should below this position; None: everywhere

    def _possible(self, key_dim: int, kind: str) -> list[_Turn | None]:
        """How keys of this size may turn; first by the frequencies that are named after the layer's kind."""
        ways: list[_Turn | None] = []
        for name in sorted(self._frequencies, key=lambda name: (not (kind and kind in name), _BACKWARDS in name)):
            frequencies = self._frequencies[name]
            rest = key_dim - 2 * len(frequencies)
            for begin in sorted({0, rest}) if rest >= 0 else ():
                for pairs in _PAIRS:
                    known = (name, begin, pairs)
                    ways.append(self._made.setdefault(known, _Turn(frequencies, begin, pairs)))
        return [*ways, None]

    @property
    def kept(self) -> tuple[tuple[str, int, str] | None, ...]:
        """How each layer's keys turn, in plain values, for `settle`."""
        names = {way: name for name, way in self._made.items()}
        return tuple(None if way is None else names[way] for way in self._turns)

    def settle(
        self, kept: Sequence[tuple[str, int, str] | None], why_not: str | None, reach: int | None = None
    ) -> None:
        """What earlier comparisons found out."""
        if why_not is None:
            self._ways = [[None if name is None else self._made[name]] for name in kept]
        self.why_not, self.reach = why_not, reach

    def compare(self, here: KV, there: KV, *, rounded: bool = False) -> tuple[float, float]:
        """Hold `move` to the model's own reading of the same tokens at two places, in float32; may set `why_not`.

        Of the ways in which a layer's keys may turn, those that fit remain. `rounded`: activations meet weights in
        fewer bits, so that values differ at two places, too. Returns the largest difference, as a share of what the
        model computes, and how large it may be.
        """
        limit = _EXACT + _ROUNDING * int((there.positions - here.positions).abs().max())
        worst, left = 0.0, []
        try:
            for index, (old, new) in enumerate(zip(here.layers, there.layers, strict=True)):
                noise = _difference(old.values, new.values)
                if rounded and noise < _UNLIKE:
                    noise, limit = 0.0, max(limit, _NOISE * noise)
                off = {
                    way: self._off(old.keys, new.keys, here.positions, there.positions, way)
                    for way in self._ways[index]
                }
                left.append([way for way, error in off.items() if error <= limit])
                worst = max(worst, noise, min(off.values(), default=_INFINITE))
        except Exception as problem:  # a boundary: a model may cache anything
            self.why_not = f"{self._info.model_type!r} models rotate keys in a way of their own ({problem})"
            return _INFINITE, limit
        if worst <= limit:
            self._ways = left
        elif not self._frequencies:
            self.why_not = f"{self._info.model_type!r} models have no RoPE, so their keys are bound to their positions"
        else:
            self.why_not = f"the keys of {self._info.model_type!r} models depend on more than their distance"
        return worst, limit

    def _off(self, old: Tensor, new: Tensor, here: Tensor, there: Tensor, way: _Turn | None) -> float:
        moved = old if way is None else way(old, *way.between(here, there, old))
        return _difference(moved, new)

    @property
    def _turns(self) -> "list[_Turn | None]":
        """By layer."""
        return [ways[0] if ways else None for ways in self._ways]

    @property
    def _still(self) -> frozenset[int]:
        """Layers whose keys are not rotated at all."""
        return frozenset(layer for layer, way in enumerate(self._turns) if way is None)

    def move(self, kv: KV, positions: Tensor) -> KV:
        """The same entries at other positions, (positions,) int64. Shares what needn't change.

        Raises OutOfReach for a move that the model's keys don't allow: any at all; or one behind the position up to
        which the model computes the same at two places; or one of a row with other RoPE frequencies.
        """
        if not bool((positions - kv.positions).any()):
            return kv
        if self.why_not is not None:
            raise OutOfReach(f"{self.why_not}; they can be taken only where they stand in the sender's row, too")
        furthest = int(torch.maximum(positions, kv.positions).max())
        if self.reach is not None and furthest >= self.reach:
            raise OutOfReach(
                f"keys of {self._info.model_type!r} models are moved below position {self.reach} alone, and {furthest} "
                "is needed"
            )
        _check_factors(kv)
        return self._moved(kv, positions)

    def _moved(self, kv: KV, positions: Tensor) -> KV:
        still = self._still
        moving = [index for index in range(len(kv.layers)) if index not in still]
        old = [kv.layers[index].keys for index in moving]
        if (moved := self._by_kernel(moving, old, kv.positions, positions)) is None:
            with for_small_operations(old):
                moved = self._turned(moving, old, kv.positions, positions)
        keys = dict(zip(moving, moved, strict=True))
        layers = [LayerKV(keys[index], old.values) if index in keys else old for index, old in enumerate(kv.layers)]
        return KV(tuple(layers), positions, kv.factors)

    def _by_kernel(
        self, layers: Sequence[int], keys: Sequence[Tensor], old: Tensor, new: Tensor
    ) -> Sequence[Tensor] | None:
        if any(each.device.type != "cpu" or each.dtype != torch.bfloat16 for each in keys):
            return None
        if (tables := self.halves(new - old)) is None:
            return None
        if _is_far(old, new):
            found = kernels()
            assert isinstance(found, Kernels)
            turns = [way for way in self._turns if way is not None]
            made = {way: laid_out(way.between(old, new, keys[0]), found.block) for way in dict.fromkeys(turns)}
            return turned(keys, [made[way] for way in turns])
        return turned(keys, [table for layer in layers if (table := tables[layer]) is not None])

    def _turned(self, layers: Sequence[int], keys: Sequence[Tensor], old: Tensor, new: Tensor) -> Sequence[Tensor]:
        together = _AT_ONCE // max((each.numel() for each in keys), default=_AT_ONCE)
        turn = self._turner(old, new)
        if together < 2 or len({(each.device, each.shape) for each in keys}) > 1:
            return [turn(layer, each) for layer, each in zip(layers, keys, strict=True)]
        turn_all, done = self._together(turn), list[Tensor]()
        for begin in range(0, len(layers), together):
            some = slice(begin, begin + together)
            done += turn_all(layers[some], torch.stack(list(keys[some]))).unbind()
        return done

    def by(self, shift: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Turns a layer's keys, (1, kv_heads, positions, head_dim), further by `shift`, (positions,) int64.

        Sines and cosines are computed once for all layers of a kind on a device.
        """
        return self._turner(torch.zeros_like(shift), shift)

    def _turner(self, old: Tensor, new: Tensor) -> Callable[[int, Tensor], Tensor]:
        tables: dict[tuple[_Turn, torch.device], tuple[Tensor, Tensor]] = {}
        turns = self._turns

        def turn(layer: int, keys: Tensor) -> Tensor:
            if (way := turns[layer]) is None:
                return keys
            if (way, keys.device) not in tables:
                tables[way, keys.device] = way.between(old, new, keys)
            return way(keys, *tables[way, keys.device])

        return turn

    def by_layers(self, shift: Tensor) -> Callable[[Sequence[int], Tensor], Tensor]:
        """As `by`, for several layers' keys in one tensor, (layers, batch, kv_heads, positions, head_dim)."""
        return self._together(self.by(shift))

    def _together(self, turn: Callable[[int, Tensor], Tensor]) -> Callable[[Sequence[int], Tensor], Tensor]:
        turns = self._turns

        def turn_all(layers: Sequence[int], keys: Tensor) -> Tensor:
            alike: dict[_Turn | None, list[int]] = {}
            for index, layer in enumerate(layers):
                alike.setdefault(turns[layer], []).append(index)
            if len(alike) == 1:
                return turn(layers[0], keys.flatten(0, 1)).view_as(keys)
            done = torch.empty_like(keys)
            for some in alike.values():
                done[some] = turn(layers[some[0]], keys[some].flatten(0, 1)).view_as(keys[some])
            return done

        return turn_all

    def halves(self, positions: Tensor) -> list[Tensor | None] | None:
        """By layer, for the kernels, cosines and sines at these positions; None for a layer without RoPE.

        None for all where there are no kernels for such heads, or a head is turned otherwise than by its halves, each
        element with that of the other half.
        """
        found = kernels()
        if not isinstance(found, Kernels) or not self._by_halves(2 * found.block):
            return None
        made: dict[_Turn, Tensor] = {}
        for way in self._turns:
            if way is not None and way not in made:
                compute = partial(_at, way)
                made[way] = self._tables.setdefault(way, Angles(compute, found.block)).at(positions)
        return [None if way is None else made[way] for way in self._turns]

    def _by_halves(self, block: int) -> bool:
        return all(
            way is None or (way.pairs == "halves" and way.width == shape.key_dim and not shape.key_dim % block)
            for way, shape in zip(self._turns, self._info.shapes, strict=True)
        )

    def unrotated(self, kv: KV) -> KV:
        """The same entries with keys as they are before RoPE: at position 0. Raises OutOfReach as `move` does."""
        at = torch.zeros_like(kv.positions)
        if not bool(kv.positions.any()):
            return kv
        _check_factors(kv)
        return self._moved(kv, at)


def _frequencies(decoder: Any) -> Iterator[tuple[str, Tensor]]:
    """By name, all that the model may turn keys by, one way round or the other: (pairs,), radians a position."""
    for name, buffer in decoder.named_buffers():
        if name.endswith("inv_freq"):
            found = buffer.detach().float().cpu().clone()
        elif name.endswith("embed_positions") and buffer.ndim == 2 and len(buffer) > 1:
            sines, cosines = buffer[1].detach().double().cpu().chunk(2)
            found = torch.atan2(sines, cosines).float()
        else:
            continue
        yield name, found
        yield f"{name}{_BACKWARDS}", -found


def _check_factors(kv: KV) -> None:
    if kv.factors:
        raise OutOfReach("the sender's row is so long that its keys turn by other RoPE frequencies")


def _at(way: _Turn, positions: Tensor) -> tuple[Tensor, Tensor]:
    return way.tables(way.angles(positions))


def _is_far(old: Tensor, new: Tensor) -> bool:
    return any(len(each) > 0 and int(each.max()) >= KEPT for each in (old, new))


def _difference(a: Tensor, b: Tensor) -> float:
    """Of two tensors, as a share of the second's norm."""
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-30))
