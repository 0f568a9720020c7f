"""Reading a prompt together: sharers and receiver prefill, and what both have seen is corrected (arXiv 2510.03215)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import anyio
from torch import Tensor

from cachegraph.engine.engine import Engine
from cachegraph.engine.kv import KV, LayerKV, concat
from cachegraph.engine.request import Cost, Prefilled

from ..fusers.base import Fuser
from .reading import SharedReading, SharerReading, Stretch
from .residual import FusionMode, Source, Turning, fuse_layers
from .sizes import Sizes

__all__ = ["FusedPrefill", "Sharer", "as_read", "fused_prefill", "turning_of"]


@dataclass(frozen=True, eq=False)
class Sharer:
    """One sharer's engine and the fuser that reads its cache; `kv` where it has read its own prompt already.

    `alter` changes the cache before anybody sees it, for controls.
    """

    engine: Engine
    fuser: Fuser
    kv: tuple[KV, ...] | None = None
    alter: Callable[[KV], KV] | None = None


@dataclass(frozen=True, eq=False)
class FusedPrefill:
    """The receiver's row after all fused stretches, and what it took."""

    segments: tuple[KV, ...]
    uncorrected: tuple[KV, ...]  # the same row with the last stretch as the receiver alone made it
    sharers: tuple[tuple[KV, ...], ...]  # by sharer: its row
    nbytes: tuple[int, ...]  # by sharer: of the K and V that were handed over
    sizes: tuple[Sizes, ...]  # by sharer: of its corrections
    receiver_cost: Cost
    sharer_cost: Cost
    fuse_seconds: float


async def fused_prefill(
    receiver: Engine,
    sharers: Sequence[Sharer],
    reading: SharedReading,
    mode: FusionMode = "parallel",
    past: tuple[KV, ...] = (),
    grafts: Mapping[int, Sequence[KV]] | None = None,
) -> FusedPrefill:
    """Compute `reading.stretches` of the receiver's prompt, corrected by the sharers. Sharers prefill concurrently.

    `grafts` is what stands in front of a token, at its positions; a stretch must begin there, or the last one end
    (see `make_room`). It is taken as it is.
    """
    rows: list[tuple[KV, ...]] = [()] * len(sharers)
    costs = [Cost() for _ in sharers]

    async def read(index: int, sharer: Sharer, text: SharerReading) -> None:
        if sharer.kv is not None:
            rows[index] = sharer.kv
            return
        if not sharer.fuser.open_layers:
            return
        done: Prefilled = await sharer.engine.prefill(text.ids, positions=text.positions)
        rows[index], costs[index] = done.segments, done.cost

    async with anyio.create_task_group() as group:
        for index, (sharer, text) in enumerate(zip(sharers, reading.sharers, strict=True)):
            group.start_soon(read, index, sharer, text)
    for index, sharer in enumerate(sharers):
        if sharer.alter is not None:
            rows[index] = tuple(map(sharer.alter, rows[index]))
    began = perf_counter()
    caches = [
        await as_read(concat(row), sharer.fuser, sharer.engine) if row else None
        for sharer, row in zip(sharers, rows, strict=True)
    ]
    seconds = perf_counter() - began

    segments, uncorrected, cost = past, past, Cost()
    sizes = tuple(Sizes() for _ in sharers)
    placed = dict(grafts or {})
    for stretch in reading.stretches:
        segments = (*segments, *placed.pop(stretch.start, ()))
        piece = reading.positions[stretch.start : stretch.end] if reading.positions is not None else None
        before = segments
        done = await receiver.prefill(reading.ids[stretch.start : stretch.end], segments, positions=piece)
        cost.add(done.cost)
        segments = uncorrected = done.segments
        if stretch.pairs and done.kv is not None:
            began = perf_counter()
            corrected = await _correct(receiver, sharers, caches, done.kv, stretch, mode, sizes)
            segments = (*before, corrected)
            seconds += perf_counter() - began
    behind = placed.pop(reading.end, ())
    segments, uncorrected = (*segments, *behind), (*uncorrected, *behind)
    total = Cost()
    for each in costs:
        total.add(each)
    nbytes = tuple(
        _bytes(j, sharer, cache, reading) for j, (sharer, cache) in enumerate(zip(sharers, caches, strict=True))
    )
    return FusedPrefill(segments, uncorrected, tuple(rows), nbytes, sizes, cost, total, seconds)


async def _correct(
    receiver: Engine,
    sharers: Sequence[Sharer],
    caches: Sequence[KV | None],
    kv: KV,
    stretch: Stretch,
    mode: FusionMode,
    sizes: Sequence[Sizes],
) -> KV:
    sources = []
    for j, pairs in stretch.pairs.items():
        if (cache := caches[j]) is not None:
            fuser, both = sharers[j].fuser, (pairs.receiver, pairs.sharer)
            turning = turning_of(fuser, receiver, kv.positions)
            sources.append(Source(fuser, cache.layers, both, sizes[j], turning))
    fused = await receiver.call(lambda: fuse_layers(kv.layers, sources, mode))
    return KV(tuple(LayerKV(*layer) for layer in fused.layers), kv.positions)


def turning_of(fuser: Fuser, receiver: Engine, positions: Tensor) -> Turning | None:
    """How the receiver's keys at these positions are rotated, for a fuser that reads them unrotated."""
    return Turning(receiver.model.rotation, positions) if fuser.card.rope == "unrotated" else None


async def as_read(kv: KV, fuser: Fuser, sharer: Engine) -> KV:
    """A sharer's cache as its fuser reads it: unrotated, where the card says so, in the turn of the sharer's engine."""
    return await sharer.call(lambda: sharer.model.rotation.unrotated(kv)) if fuser.card.rope == "unrotated" else kv


def _bytes(j: int, sharer: Sharer, cache: KV | None, reading: SharedReading) -> int:
    """Of the sharer layers that an open gate reads, at the positions that stand for a receiver's."""
    if cache is None:
        return 0
    positions = sum(len(stretch.pairs[j].sharer) for stretch in reading.stretches if j in stretch.pairs)
    used = {layer for target, layer, _ in sharer.fuser if sharer.fuser.is_open(target)}
    return sum(positions * (each.nbytes // max(each.shape[2], 1)) for layer in used for each in cache.layers[layer])
