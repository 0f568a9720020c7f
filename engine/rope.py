"""Moving keys to other positions.

A key in a cache has been rotated by its position (RoPE). Rotations add up, so a key read at position p stands at
position q after one more rotation by q - p; values carry no position. The rotation itself is the model's own
(`apply_rotary_pos_emb` and its rotary module), whatever its pairing of dimensions, its share of the head, its per-layer
base or its scaling; here it is only called with a difference of positions. Before a model's keys are ever moved, this
identity is checked on random vectors, and `move` on what the model itself makes of the same tokens at two places; a
model that fails is refused.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from .cpu.build import Kernels, kernels
from .cpu.threads import for_small_operations
from .cpu.turn import Angles, turned
from .info import ModelInfo
from .kv import KV, LayerKV

__all__ = ["Rotation"]

_ALIKE = 0.99  # cosine
_AT_ONCE = 1 << 18  # elements: an operation on fewer is all overhead, one on more leaves the CPU's cache


class Rotation:
    """One model's RoPE, for moving cached keys. `why_not` says why this model's keys can't be moved, or is None."""

    def __init__(self, model: Any, info: ModelInfo):
        self._info = info
        self._kinds = list(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or [])
        self._module = getattr(model.get_decoder(), "rotary_emb", None)
        self._apply = getattr(sys.modules[type(model).__module__], "apply_rotary_pos_emb", None)
        self._share: int | None = None  # how many of a head's dimensions turn, where the model slices them off itself
        self._still: frozenset[int] = frozenset()  # layers whose keys are not rotated at all
        self._angles: dict[str | None, Angles] = {}  # by kind
        self.why_not = info.why_no_cache or info.why_no_rotation or self._check()

    def compare(self, here: KV, there: KV) -> None:
        """Hold `move` to the model's own reading of the same tokens at two places, in float32; may set `why_not`."""
        moved = self.move(here, there.positions)
        still = set()
        for index, (old, new, expected) in enumerate(zip(here.layers, moved.layers, there.layers, strict=True)):
            unmoved, turned = (_likeness(each.keys, expected.keys) for each in (old, new))
            if unmoved > turned:
                still.add(index)
            if min(max(unmoved, turned), _likeness(old.values, expected.values)) < _ALIKE:
                self.why_not = f"the keys of {self._info.model_type!r} models depend on more than their distance"
                return
        self._still = frozenset(still)

    def move(self, kv: KV, positions: Tensor) -> KV:
        """The same entries at other positions, (positions,) int64. Shares what needn't change."""
        shift = positions - kv.positions  # (positions,)
        if not bool(shift.any()):
            return kv
        moving = [index for index in range(len(kv.layers)) if index not in self._still]
        old = [kv.layers[index].keys for index in moving]
        if (moved := self._by_kernel(moving, old, shift)) is None:
            with for_small_operations(old):
                moved = self._turned(moving, old, shift)
        keys = dict(zip(moving, moved, strict=True))
        layers = [LayerKV(keys[index], old.values) if index in keys else old for index, old in enumerate(kv.layers)]
        return KV(tuple(layers), positions)

    def _by_kernel(self, layers: Sequence[int], keys: Sequence[Tensor], shift: Tensor) -> Sequence[Tensor] | None:
        if any(each.device.type != "cpu" or each.dtype != torch.bfloat16 for each in keys):
            return None
        if (tables := self.halves(shift)) is None:
            return None
        return turned(keys, [table for layer in layers if (table := tables[layer]) is not None])

    def _turned(self, layers: Sequence[int], keys: Sequence[Tensor], shift: Tensor) -> Sequence[Tensor]:
        together = _AT_ONCE // max((each.numel() for each in keys), default=_AT_ONCE)
        if together < 2 or len({each.device for each in keys}) > 1:
            turn = self.by(shift)
            return [turn(layer, each) for layer, each in zip(layers, keys, strict=True)]
        turn_all, done = self.by_layers(shift), list[Tensor]()
        for begin in range(0, len(layers), together):
            some = slice(begin, begin + together)
            done += turn_all(layers[some], torch.stack(list(keys[some]))).unbind()
        return done

    def by(self, shift: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Turns a layer's keys, (1, kv_heads, positions, head_dim), further by `shift`, (positions,) int64.

        Sines and cosines are computed once for all layers of a kind on a device.
        """
        tables: dict[tuple[str | None, torch.device], tuple[Tensor, Tensor]] = {}

        def turn(layer: int, keys: Tensor) -> Tensor:
            if layer in self._still:
                return keys
            table = (self._kind(layer), keys.device)
            if table not in tables:
                tables[table] = self._tables(shift, *table)
            return self._turn(keys, *tables[table])

        return turn

    def by_layers(self, shift: Tensor) -> Callable[[Sequence[int], Tensor], Tensor]:
        """As `by`, for several layers' keys in one tensor, (layers, batch, kv_heads, positions, head_dim)."""
        turn = self.by(shift)

        def turn_all(layers: Sequence[int], keys: Tensor) -> Tensor:
            alike: dict[object, list[int]] = {}
            for index, layer in enumerate(layers):
                alike.setdefault(self if layer in self._still else self._kind(layer), []).append(index)
            if len(alike) == 1:
                return turn(layers[0], keys.flatten(0, 1)).view_as(keys)
            turned = torch.empty_like(keys)
            for some in alike.values():
                turned[some] = turn(layers[some[0]], keys[some].flatten(0, 1)).view_as(keys[some])
            return turned

        return turn_all

    def halves(self, positions: Tensor) -> list[Tensor | None] | None:
        """By layer, for the kernels, cosines and sines at these positions; None for a layer without RoPE.

        None for all where there are no kernels for such heads, or a head is turned otherwise than by its halves, each
        element with that of the other half.
        """
        found = kernels()
        if not isinstance(found, Kernels) or self._info.head_dim % (2 * found.block) or not self._by_halves:
            return None
        made: dict[str | None, Tensor] = {}
        for layer in range(self._info.layers):
            if layer not in self._still and (kind := self._kind(layer)) not in made:
                compute = partial(self._tables, kind=kind, device=torch.device("cpu"))
                made[kind] = self._angles.setdefault(kind, Angles(compute, found.block)).at(positions)
        return [None if layer in self._still else made[self._kind(layer)] for layer in range(self._info.layers)]

    @cached_property
    def _by_halves(self) -> bool:
        key = torch.randn(1, 1, 1, self._info.head_dim, generator=torch.Generator().manual_seed(0))
        for kind in dict.fromkeys(map(self._kind, range(self._info.layers))):
            cos, sin = self._tables(torch.tensor([5]), kind, torch.device("cpu"))
            if cos.shape[-1] != self._info.head_dim:
                return False
            first, second = key.chunk(2, dim=-1)
            if not torch.allclose(self._turn(key, cos, sin), key * cos + torch.cat([-second, first], -1) * sin):
                return False
        return True

    def unrotated(self, kv: KV) -> KV:
        """The same entries with keys as they are before RoPE: at position 0."""
        return self.move(kv, torch.zeros_like(kv.positions))

    def _kind(self, layer: int) -> str | None:
        """The rotary module's name for a layer's kind, where it keeps several bases."""
        return self._kinds[layer] if self._kinds and hasattr(self._module, f"{self._kinds[layer]}_inv_freq") else None

    def _tables(self, shift: Tensor, kind: str | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of these differences, (1, positions, rotary_dim), without the scaling that keys have."""
        assert self._module is not None
        home = next(self._module.buffers()).device
        probe = torch.empty(1, device=home, dtype=torch.float32)
        extra = (kind,) if kind is not None else ()
        cos, sin = self._module(probe, shift[None].to(home), *extra)
        scaling = getattr(self._module, f"{kind}_attention_scaling" if kind else "attention_scaling", 1.0)
        return (cos / scaling).to(device), (sin / scaling).to(device)

    def _turn(self, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """One more rotation, computed in float32. Keys: (1, kv_heads, positions, head_dim)."""
        assert self._apply is not None
        share = self._share if self._share is not None else keys.shape[-1]
        turning, still = keys[..., :share].float(), keys[..., share:]
        turned = self._apply(turning, turning, cos, sin)[1].to(keys.dtype)
        return torch.cat([turned, still], dim=-1) if still.shape[-1] else turned

    def _check(self) -> str | None:
        if self._apply is None or self._module is None:
            return f"{self._info.model_type!r} models rotate keys in a way of their own"
        device = next(self._module.buffers()).device
        with torch.no_grad():
            for share in (None, self._turning_dims(device)):
                self._share = share
                try:
                    return self._check_layers(device)
                except (TypeError, ValueError, RuntimeError, AttributeError) as error:
                    reason = f"{self._info.model_type!r} models rotate keys in a way of their own ({error})"
        return reason

    def _turning_dims(self, device: torch.device) -> int:
        return self._tables(torch.tensor([0]), self._kind(0), device)[0].shape[-1]

    def _check_layers(self, device: torch.device) -> str | None:
        generator = torch.Generator().manual_seed(0)
        key = torch.randn(1, 1, 1, self._info.head_dim, generator=generator).to(device)
        for kind in dict.fromkeys(map(self._kind, range(self._info.layers))):
            there, back, near = (self._tables(torch.tensor([step]), kind, device) for step in (11, -6, 5))
            moved = self._turn(self._turn(key, *there), *back)
            if not torch.allclose(moved, self._turn(key, *near), atol=1e-4):
                return f"{self._info.model_type!r} models rotate keys in a way that doesn't add up"
        return None


def _likeness(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.float().flatten(), b.float().flatten(), dim=0).item()
