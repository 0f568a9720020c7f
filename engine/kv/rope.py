"""Moves cached keys to other positions by rotating them further (RoPE, arXiv 2104.09864).

A cached key has been rotated by its position: pairs of its elements by angles that grow with the position, each pair at
its own frequency. So a key read at position p moves to position q by one more rotation, by the difference of the
two angles. Values carry no position. The frequencies are the model's own. `Rotation.compare` finds out which of them a
layer uses, for which part of its keys, and how it pairs their elements: keys moved from one place to another must be
the keys that the model computes there. A model that fails is refused.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cachegraph.errors import ModelError

from ..kernels import AngleTables, backend
from ..torch_threads import for_small_operations
from .cache import KV, LayerKV
from .rotary_scheme import PAIRINGS, RotaryScheme, is_far, rotary_frequencies

if TYPE_CHECKING:
    from ..model.model_config import ModelInfo

__all__ = ["OutOfReach", "Rotation"]

_EXACT = 1e-3  # of the norm: how far float32 results may differ
_ROUNDING = 1e-7  # more for each position of the distance: far out the model's own angles are rounded
_NOISE = 3.0  # the same as a multiple of how far values differ, where activations are rounded
_UNLIKE = 0.15  # of the norm: values that differ by more depend on their position
_INFINITE = 1e9
_AT_ONCE = 1 << 18  # elements: an operation on fewer is all overhead, one on more leaves the CPU's cache

SchemeName = tuple[str, int, str]  # a scheme's frequencies, begin and pairing


class OutOfReach(ModelError):
    """Raised for keys that would be moved further than is exact."""


class Rotation:
    """One model's RoPE, for moving cached keys. `why_not` says why this model's keys can't be moved, or is None."""

    def __init__(self, model: Any, info: "ModelInfo"):
        self._info = info
        self._frequencies = rotary_frequencies(model.get_decoder())
        kinds = list(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or [])
        self._by_name: dict[SchemeName, RotaryScheme] = {}
        # By layer, the schemes that are not ruled out yet; None: no rotation at all.
        self._candidates = [
            self._possible(shape.key_dim, kinds[layer] if layer < len(kinds) else "")
            for layer, shape in enumerate(info.shapes)
        ]
        self._angle_tables: dict[RotaryScheme, AngleTables] = {}
        self.why_not = info.why_no_cache
        self.reach: int | None = None  # keys can be moved below this position; None: everywhere

    def _possible(self, key_dim: int, kind: str) -> list[RotaryScheme | None]:
        """All schemes for keys of this size; first those whose frequencies are named after the layer's kind."""
        schemes: list[RotaryScheme | None] = []
        for name in sorted(self._frequencies, key=lambda name: not (kind and kind in name)):
            frequencies = self._frequencies[name]
            rest = key_dim - 2 * len(frequencies)
            for begin in sorted({0, rest}) if rest >= 0 else ():
                for pairing in PAIRINGS:
                    key = (name, begin, pairing)
                    schemes.append(self._by_name.setdefault(key, RotaryScheme(frequencies, begin, pairing)))
        return [*schemes, None]

    @property
    def found(self) -> tuple[SchemeName | None, ...]:
        """By layer, its scheme in plain values, for `settle`."""
        names = {scheme: name for name, scheme in self._by_name.items()}
        return tuple(None if scheme is None else names[scheme] for scheme in self._schemes)

    def settle(self, found: Sequence[SchemeName | None], why_not: str | None, reach: int | None = None) -> None:
        """Take over what earlier comparisons found out."""
        if why_not is None:
            self._candidates = [[None if name is None else self._by_name[name]] for name in found]
        self.why_not, self.reach = why_not, reach

    def compare(self, near: KV, far: KV, *, rounded: bool = False) -> tuple[float, float]:
        """Compare `move` with the model's own keys of the same tokens at two places, in float32; may set `why_not`.

        Both caches have layers of (1, kv_heads, positions, head_dim) and equally many positions.
        Of a layer's candidate schemes, those that fit remain. `rounded`: activations meet weights of fewer bits, so
        values also differ between two places. Returns the largest difference, as a share of the norm of what the model
        computes, and how large it may be.
        """
        limit = _EXACT + _ROUNDING * int((far.positions - near.positions).abs().max())
        worst, left = 0.0, []
        try:
            for index, (old, new) in enumerate(zip(near.layers, far.layers, strict=True)):
                noise = _difference(old.values, new.values)
                if rounded and noise < _UNLIKE:
                    noise, limit = 0.0, max(limit, _NOISE * noise)
                errors = {
                    scheme: _error_of(scheme, old.keys, new.keys, near.positions, far.positions)
                    for scheme in self._candidates[index]
                }
                left.append([scheme for scheme, error in errors.items() if error <= limit])
                worst = max(worst, noise, min(errors.values(), default=_INFINITE))
        except Exception as problem:  # a boundary: a model may cache anything
            self.why_not = f"{self._info.model_type!r} models rotate keys in a way of their own ({problem})"
            return _INFINITE, limit
        if worst <= limit:
            self._candidates = left
        elif not self._frequencies:
            self.why_not = f"{self._info.model_type!r} models have no RoPE, so their keys are bound to their positions"
        else:
            self.why_not = f"the keys of {self._info.model_type!r} models depend on more than their distance"
        return worst, limit

    @property
    def _schemes(self) -> list[RotaryScheme | None]:
        """By layer; None for one whose keys are not rotated at all."""
        return [candidates[0] if candidates else None for candidates in self._candidates]

    def move(self, kv: KV, positions: Tensor) -> KV:
        """The same entries at other positions, (positions,) int64. Shares the memory of all that does not change.

        Raises OutOfReach where the model's keys can't be moved, or not to positions this far out, or where the row was
        read with other RoPE frequencies.
        """
        if not bool((positions - kv.positions).any()):
            return kv
        if self.why_not is not None:
            raise OutOfReach(f"{self.why_not}; they can be grafted only at their positions in the sender's row")
        furthest = int(torch.maximum(positions, kv.positions).max())
        if self.reach is not None and furthest >= self.reach:
            raise OutOfReach(
                f"keys of {self._info.model_type!r} models are moved below position {self.reach} alone, and {furthest} "
                "is needed"
            )
        _check_factors(kv)
        return self._moved(kv, positions)

    def unrotated(self, kv: KV) -> KV:
        """The same entries with keys as they are before RoPE, (1, kv_heads, positions, head_dim) by layer.

        Raises OutOfReach if the row was read with other RoPE frequencies.
        """
        if not bool(kv.positions.any()):
            return kv
        _check_factors(kv)
        return self._moved(kv, torch.zeros_like(kv.positions))

    def shifter(self, shift: Tensor) -> Callable[[int, Tensor], Tensor]:
        """A function that rotates a layer's keys, (1, kv_heads, positions, head_dim), by `shift`, (positions,) int64.

        It computes sines and cosines once for all layers of a scheme on a device.
        """
        return self._rotator(torch.zeros_like(shift), shift)

    def stacked_shifter(self, shift: Tensor) -> Callable[[Sequence[int], Tensor], Tensor]:
        """As `shifter`, for several layers' keys in one tensor, (layers, batch, kv_heads, positions, head_dim)."""
        return self._stacked(self.shifter(shift))

    def kernel_tables(self, positions: Tensor) -> list[Tensor | None] | None:
        """By layer, cosines and sines at positions for the CPU's kernels; None for a layer without RoPE.

        (positions, 2, head_dim) each. None for all where there are no kernels for such heads.
        """
        rotator = backend("cpu").key_rotator()
        if rotator is None or not self._pairs_halves(rotator.unit):
            return None
        made: dict[RotaryScheme, Tensor] = {}
        for scheme in self._schemes:
            if scheme is not None and scheme not in made:
                if scheme not in self._angle_tables:
                    self._angle_tables[scheme] = rotator.tables(scheme.tables_at)
                made[scheme] = self._angle_tables[scheme].at(positions)
        return [None if scheme is None else made[scheme] for scheme in self._schemes]

    def _pairs_halves(self, unit: int) -> bool:
        """Whether all of a head is rotated by halves, in every layer that has RoPE, and head_dim is whole units."""
        return all(
            scheme is None
            or (scheme.pairing == "halves" and scheme.width == shape.key_dim and not shape.key_dim % unit)
            for scheme, shape in zip(self._schemes, self._info.shapes, strict=True)
        )

    def _moved(self, kv: KV, positions: Tensor) -> KV:
        kept_layers = len(kv.layers)  # of a pass that ended early: the first ones
        rotating = [layer for layer, scheme in enumerate(self._schemes[:kept_layers]) if scheme is not None]
        old = [kv.layers[layer].keys for layer in rotating]
        if (moved := self._by_kernel(rotating, old, kv.positions, positions)) is None:
            with for_small_operations(old):
                moved = self._by_torch(rotating, old, kv.positions, positions)
        keys = dict(zip(rotating, moved, strict=True))
        layers = [LayerKV(keys[layer], kept.values) if layer in keys else kept for layer, kept in enumerate(kv.layers)]
        return KV(tuple(layers), positions, kv.factors)

    def _by_kernel(
        self, layers: Sequence[int], keys: Sequence[Tensor], old: Tensor, new: Tensor
    ) -> Sequence[Tensor] | None:
        rotator = backend(keys[0].device.type).key_rotator() if keys else None
        if rotator is None or not rotator.takes(keys) or not self._pairs_halves(rotator.unit):
            return None
        if is_far(old, new):
            schemes = [scheme for layer in layers if (scheme := self._schemes[layer]) is not None]
            made = {
                scheme: rotator.table(scheme.tables_between(old, new, keys[0])) for scheme in dict.fromkeys(schemes)
            }
            return rotator.rotate(keys, [made[scheme] for scheme in schemes])
        tables = self.kernel_tables(new - old) or []
        return rotator.rotate(keys, [table for layer in layers if (table := tables[layer]) is not None])

    def _by_torch(self, layers: Sequence[int], keys: Sequence[Tensor], old: Tensor, new: Tensor) -> Sequence[Tensor]:
        at_once = _AT_ONCE // max((layer_keys.numel() for layer_keys in keys), default=_AT_ONCE)
        rotate = self._rotator(old, new)
        if at_once < 2 or len({(layer_keys.device, layer_keys.shape) for layer_keys in keys}) > 1:
            return [rotate(layer, layer_keys) for layer, layer_keys in zip(layers, keys, strict=True)]
        rotate_stack, done = self._stacked(rotate), list[Tensor]()
        for begin in range(0, len(layers), at_once):
            some = slice(begin, begin + at_once)
            done += rotate_stack(layers[some], torch.stack(list(keys[some]))).unbind()
        return done

    def _rotator(self, old: Tensor, new: Tensor) -> Callable[[int, Tensor], Tensor]:
        tables: dict[tuple[RotaryScheme, torch.device], tuple[Tensor, Tensor]] = {}
        schemes = self._schemes

        def rotate(layer: int, keys: Tensor) -> Tensor:
            if (scheme := schemes[layer]) is None:
                return keys
            if (scheme, keys.device) not in tables:
                tables[scheme, keys.device] = scheme.tables_between(old, new, keys)
            return scheme.rotate(keys, *tables[scheme, keys.device])

        return rotate

    def _stacked(self, rotate: Callable[[int, Tensor], Tensor]) -> Callable[[Sequence[int], Tensor], Tensor]:
        schemes = self._schemes

        def rotate_stack(layers: Sequence[int], keys: Tensor) -> Tensor:
            alike: dict[RotaryScheme | None, list[int]] = {}
            for index, layer in enumerate(layers):
                alike.setdefault(schemes[layer], []).append(index)
            if len(alike) == 1:
                return rotate(layers[0], keys.flatten(0, 1)).view_as(keys)
            done = torch.empty_like(keys)
            for some in alike.values():
                done[some] = rotate(layers[some[0]], keys[some].flatten(0, 1)).view_as(keys[some])
            return done

        return rotate_stack


def _error_of(
    scheme: RotaryScheme | None, old: Tensor, new: Tensor, old_positions: Tensor, new_positions: Tensor
) -> float:
    """How far keys moved by a scheme, (1, kv_heads, positions, head_dim), are from those that the model computes."""
    moved = old if scheme is None else scheme.rotate(old, *scheme.tables_between(old_positions, new_positions, old))
    return _difference(moved, new)


def _check_factors(kv: KV) -> None:
    if kv.factors:
        raise OutOfReach("the sender's row is so long that its keys have other RoPE frequencies")


def _difference(a: Tensor, b: Tensor) -> float:
    """Of two tensors, as a share of the second's norm."""
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-30))
