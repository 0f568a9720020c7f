"""Apply fusers: add their corrections to a receiver's keys and values, layer by layer. Inputs are never modified."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cachegraph.engine.kernels import KVPair
from cachegraph.engine.kv.rope import Rotation
from cachegraph.engine.kv.shapes import KVShape
from cachegraph.engine.torch_threads import for_small_operations
from cachegraph.errors import ChannelError

from ..fusers.networks.base import Fuser, Projector, Residual
from ..fusers.networks.bottleneck import BottleneckFuser
from .residual_norms import ResidualNorms

__all__ = ["FusedLayers", "FuserInput", "FusionMode", "ReceiverRope", "fuse_layers"]

FusionMode = Literal["parallel", "sequential"]
_AT_ONCE = 1 << 19  # elements


class ReceiverRope(NamedTuple):
    """The receiver's RoPE, and the RoPE positions of its entries, (positions,) int64."""

    rotation: Rotation
    positions: Tensor


@dataclass(frozen=True, eq=False)
class FuserInput:
    """One sharer: its cache, the fuser that reads it, and the pairs of positions.

    `layers` are all layers of the sharer, or the first `fuser.sharer_depth`, keys and values (1, kv_heads, positions,
    head_dim). `pairs` is two index tensors, (pairs,) int64 each: receiver positions, each at most once, and sharer
    positions; None pairs equal positions. `sizes`, if given, accumulates the norms of the corrections. A fuser of
    unrotated keys needs unrotated `layers`, and `rope` to rotate its corrections.
    """

    fuser: Fuser
    layers: Sequence[KVPair]
    pairs: tuple[Tensor, Tensor] | None = None
    sizes: ResidualNorms | None = None
    rope: ReceiverRope | None = None


class FusedLayers(NamedTuple):
    """The corrected cache. Uncorrected layers are the input tensors themselves."""

    layers: tuple[KVPair, ...]
    changed: tuple[int, ...]


class _Part(NamedTuple):
    """A correction and the receiver positions it applies to; None: all."""

    residual: Tensor
    positions: Tensor | None


def fuse_layers(
    receiver: Sequence[KVPair],
    sources: Sequence[FuserInput],
    mode: FusionMode = "parallel",
    only: Collection[int] | None = None,
) -> FusedLayers:
    """Add the corrections of every source to the receiver's layers, or only to the layers in `only`.

    `receiver` has keys and values by layer, each (batch, kv_heads, positions, head_dim). In parallel mode, every source
    reads the uncorrected cache, and the result does not depend on the order of the sources, bit for bit. In sequential
    mode, each source reads the output of the one before. Raises ChannelError if caches, fuser and pairs do not fit each
    other.
    """
    for source in sources:
        _check(source, receiver)
    if only is None and len(sources) == 1 and (done := _by_kernel(receiver, sources[0])) is not None:
        return done
    with for_small_operations(keys for keys, _ in receiver):
        if mode == "sequential":
            layers = tuple(receiver)
            for source in sources:
                layers = _fuse(layers, [source], only)
        else:
            layers = _fuse(receiver, sources, only)
    changed = tuple(i for i, (old, new) in enumerate(zip(receiver, layers, strict=True)) if old is not new)
    return FusedLayers(layers, changed)


def _by_kernel(receiver: Sequence[KVPair], source: FuserInput) -> FusedLayers | None:
    """Correct all layers in one kernel call; None if the fuser has no kernel for these caches."""
    chosen = [entry for entry in source.fuser if any(entry[2].gates)]
    stack = source.fuser.stack([layer for layer, _, _ in chosen])
    if source.pairs is None or len(source.pairs[0]) == 0 or stack is None or stack.kernel is None:
        return None
    own, sharer_layers = [receiver[layer] for layer, _, _ in chosen], [source.layers[other] for _, other, _ in chosen]
    tables: Sequence[Tensor | None] | None = [None] * len(receiver)
    if source.rope is not None:
        tables = source.rope.rotation.kernel_tables(source.rope.positions[source.pairs[0]])
    if tables is None or not stack.kernel.takes(own, sharer_layers, source.rope is not None):
        return None
    changed = tuple(layer for layer, _, _ in chosen)
    corrected, squares = stack.kernel(own, sharer_layers, source.pairs, [tables[layer] for layer in changed])
    if source.sizes is not None:
        source.sizes.add_squares(changed, squares)
    new = dict(zip(changed, corrected, strict=True))
    return FusedLayers(tuple(new.get(layer, old) for layer, old in enumerate(receiver)), changed)


def _fuse(
    receiver: Sequence[KVPair], sources: Sequence[FuserInput], only: Collection[int] | None
) -> tuple[KVPair, ...]:
    parts: dict[int, tuple[list[_Part], list[_Part]]] = {}
    for source in sources:
        if source.pairs is not None and len(source.pairs[0]) == 0:
            continue
        rope = _key_rope(source)
        for layer, k, v in _corrections(receiver, source, rope, only):
            keys, values = parts.setdefault(layer, ([], []))
            positions = None if source.pairs is None else source.pairs[0]
            keys += [] if k is None else [_Part(k, positions)]
            values += [] if v is None else [_Part(v, positions)]
    layers = list(receiver)
    for layer, (keys, values) in parts.items():
        old_k, old_v = receiver[layer]
        layers[layer] = (_added(old_k, keys), _added(old_v, values))
    return tuple(layers)


def _corrections(
    receiver: Sequence[KVPair], source: FuserInput, rope: "_KeyRope | None", only: Collection[int] | None
) -> Iterator[tuple[int, Tensor | None, Tensor | None]]:
    """Compute one source's corrections, by receiver layer with an open gate: (layer, keys, values)."""
    if isinstance(source.fuser, BottleneckFuser):
        yield from _of_all_layers(source.fuser, receiver, source, rope, only)
        return
    chosen = [entry for entry in source.fuser if any(entry[2].gates) and (only is None or entry[0] in only)]
    stack = source.fuser.stack([layer for layer, _, _ in chosen])
    receiver_positions, sharer_positions = source.pairs if source.pairs is not None else (None, None)
    together = 1 if stack is None else _together(receiver, source, chosen[0][2].device)
    for begin in range(0, len(chosen), together):  # layers of one stack have one shape
        some = chosen[begin : begin + together]
        layers, projector = [layer for layer, _, _ in some], some[0][2]
        place = projector.device, projector.dtype if stack is None else stack.dtype
        sharer_kv = _stacked([source.layers[other] for _, other, _ in some], sharer_positions, *place)
        own = _stacked([receiver[layer] for layer in layers], receiver_positions, *place)
        bare = own[0] if rope is None else rope.remove(layers, own[0])
        part = None if stack is None else stack.part(begin, begin + together)
        k, v = part(*sharer_kv, bare, own[1]) if part is not None else _one(projector, *sharer_kv, bare, own[1])
        k = rope.apply(layers, k) if rope is not None and k is not None else k
        if source.sizes is not None:
            source.sizes.add(layers, Residual(k, v), *own)
        for index, layer in enumerate(layers):
            yield layer, None if k is None else k[index], None if v is None else v[index]


def _of_all_layers(
    fuser: BottleneckFuser,
    receiver: Sequence[KVPair],
    source: FuserInput,
    rope: "_KeyRope | None",
    only: Collection[int] | None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The same for a network shared by all layers: it runs once, and layers of one shape are rotated together."""
    receiver_positions, sharer_positions = source.pairs if source.pairs is not None else (None, None)
    added = fuser.corrections([(_at(k, sharer_positions), _at(v, sharer_positions)) for k, v in source.layers])
    by_shape: dict[KVShape, list[int]] = {}
    for layer, shape in enumerate(fuser.card.receiver.geometry.shapes):
        if only is None or layer in only:
            by_shape.setdefault(shape, []).append(layer)
    for layers in by_shape.values():
        k, v = (torch.stack([added[layer][index] for layer in layers]).float() for index in (0, 1))
        k = k if rope is None else rope.apply(layers, k)
        if source.sizes is not None:
            own = _stacked([receiver[layer] for layer in layers], receiver_positions, k.device, k.dtype)
            source.sizes.add(layers, Residual(k, v), *own)
        for index, layer in enumerate(layers):
            yield layer, k[index], v[index]


def _together(receiver: Sequence[KVPair], source: FuserInput, device: torch.device) -> int:
    """The number of layers to correct at once. On a CPU, few enough that their inputs stay in its cache."""
    if device.type != "cpu":
        return len(receiver)
    receiver_layer, sharer_layer = receiver[0], source.layers[0]
    positions = receiver_layer[0].shape[2] if source.pairs is None else len(source.pairs[0])
    features = sum(tensor.shape[0] * tensor.shape[1] * tensor.shape[3] for tensor in (*receiver_layer, *sharer_layer))
    return max(1, _AT_ONCE // max(1, positions * features))


def _one(projector: Projector, *layers: Tensor) -> Residual:
    k, v = projector.residual(*(stacked[0] for stacked in layers))
    return Residual(None if k is None else k[None], None if v is None else v[None])


class _KeyRope(NamedTuple):
    """Remove and apply RoPE on stacked keys, (layers, batch, kv_heads, positions, head_dim), at the receiver's
    positions.

    Rotation is linear, so a correction of unrotated keys can be rotated and added to rotated keys.
    """

    remove: Callable[[Sequence[int], Tensor], Tensor]
    apply: Callable[[Sequence[int], Tensor], Tensor]


def _key_rope(source: FuserInput) -> _KeyRope | None:
    if source.rope is None:
        return None
    rotation, positions = source.rope
    at = positions if source.pairs is None else positions[source.pairs[0].cpu()]
    return _KeyRope(rotation.stacked_shifter(-at), rotation.stacked_shifter(at))


def _stacked(
    layers: Sequence[KVPair], positions: Tensor | None, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Gather layers at these positions on the projector's device: keys and values, (layers, batch, kv_heads, ...)."""

    keys, values = (
        torch.stack([_at(layer[index], positions).to(device, dtype) for layer in layers]) for index in (0, 1)
    )
    return keys, values


def _at(x: Tensor, positions: Tensor | None) -> Tensor:
    """Select keys or values at these positions; None: all positions."""
    return x if positions is None else x.index_select(2, positions.to(x.device))


def _added(base: Tensor, parts: list[_Part]) -> Tensor:
    """Add the sum of the parts to `base`; returns a new tensor unless there are no parts."""
    if not parts:
        return base
    if all(part.positions is None for part in parts):
        residuals = [part.residual.to(base.device) for part in parts]
        return _sum(base, residuals)
    if len(parts) == 1:
        positions = _on(base, parts[0].positions)
        return base.index_copy(2, positions, _sum(base.index_select(2, positions), [parts[0].residual.to(base.device)]))
    positions = torch.unique(torch.cat([_positions(part, base) for part in parts]))
    chosen = base.index_select(2, positions)
    spread = [_spread(part, positions, base, chosen.shape) for part in parts]
    return base.index_copy(2, positions, _sum(chosen, spread))


def _sum(base: Tensor, residuals: list[Tensor]) -> Tensor:
    """Add residuals to `base` and round once to its dtype. More than two residuals are sorted before summing, so that
    the order of the sources does not affect the result.
    """
    if len(residuals) > 2:
        residuals = list(torch.stack(residuals).sort(dim=0).values)
    total = residuals[0]
    for residual in residuals[1:]:
        total = total + residual
    return (base.to(total.dtype) + total).to(base.dtype)


def _spread(part: _Part, positions: Tensor, base: Tensor, shape: torch.Size) -> Tensor:
    """Scatter the part's residual into a longer, sorted list of positions; zero elsewhere."""
    places = torch.searchsorted(positions, _positions(part, base))
    residual = part.residual.to(base.device)
    return residual.new_zeros(shape).index_copy(2, places, residual)


def _positions(part: _Part, base: Tensor) -> Tensor:
    return torch.arange(base.shape[2], device=base.device) if part.positions is None else _on(base, part.positions)


def _on(base: Tensor, positions: Tensor | None) -> Tensor:
    assert positions is not None
    return positions.to(base.device)


def _check(source: FuserInput, receiver: Sequence[KVPair]) -> None:
    card = source.fuser.card
    layers, all_layers = len(source.layers), card.sharer.geometry.layers
    enough = layers == all_layers or source.fuser.sharer_depth <= layers < all_layers
    if len(receiver) != card.receiver.geometry.layers or not enough:
        raise ChannelError(
            f"the fuser joins {card.sharer.geometry.layers} sharer layers to {card.receiver.geometry.layers} receiver "
            f"layers, but got caches of {len(source.layers)} and {len(receiver)}; use a fuser of these two models"
        )
    receiver_shape, sharer_shape = receiver[0][0].shape, source.layers[0][0].shape
    if receiver_shape[0] != sharer_shape[0]:
        raise ChannelError(
            f"the receiver's batch has {receiver_shape[0]} rows, the sharer's {sharer_shape[0]}; give both the same"
        )
    if source.pairs is None:
        if receiver_shape[2] != sharer_shape[2]:
            raise ChannelError(
                f"the receiver has {receiver_shape[2]} positions, the sharer {sharer_shape[2]}; "
                "say which stands for which"
            )
        return
    receiver_at, sharer_at = source.pairs
    if len(receiver_at) != len(sharer_at):
        raise ChannelError(
            f"{len(receiver_at)} receiver positions can't be paired with {len(sharer_at)} sharer positions"
        )
    if len(receiver_at) == 0:
        return
    if len(torch.unique(receiver_at)) != len(receiver_at):
        raise ChannelError("a receiver position is paired twice by one sharer; pair it once")
    for role, positions, length in (
        ("receiver", receiver_at, receiver_shape[2]),
        ("sharer", sharer_at, sharer_shape[2]),
    ):
        if int(positions.min()) < 0 or int(positions.max()) >= length:
            raise ChannelError(f"the pairs name {role} positions outside of its {length}; align the two again")
