"""Prefill a prompt with sharers, and correct the entries that both sides have read (arXiv 2510.03215)."""

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cachegraph.common.run_all import run_all
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV, LayerKV, concat
from cachegraph.engine.request import Cost, Prefilled

from ..fusers.networks.base import Fuser
from ..peer import SharerEngine
from .apply_fuser import FuserInput, FusionMode, ReceiverRope, fuse_layers
from .residual_norms import ResidualNorms
from .shared_prompt import SharedPrompt, SharerPrompt, Stretch
from .stream_layers import LayerStream, correct_as_they_come, on_other_devices

__all__ = ["FusedPrefill", "Sharer", "as_read", "fused_prefill", "receiver_rope"]


@dataclass(frozen=True, eq=False)
class Sharer:
    """A sharer's engine and the fuser that reads its cache. `kv` is set if the sharer has already prefilled its own
    prompt.

    `alter` changes the cache before the fuser reads it, for ablations.
    """

    engine: SharerEngine
    fuser: Fuser
    kv: tuple[KV, ...] | None = None
    alter: Callable[[KV], KV] | None = None


@dataclass(frozen=True, eq=False)
class FusedPrefill:
    """The receiver's row after the last fused stretch, and the cost."""

    segments: tuple[KV, ...]
    uncorrected: tuple[KV, ...]  # the same row, its last stretch uncorrected
    sharers: tuple[tuple[KV, ...], ...]  # the rows of the sharers, up to the depth their fusers read
    nbytes: tuple[int, ...]  # by sharer, the bytes of the K and V transferred
    sizes: tuple[ResidualNorms, ...]  # by sharer, the norms of its corrections
    receiver_cost: Cost
    sharer_cost: Cost
    fuse_seconds: float


async def fused_prefill(
    receiver: Engine,
    sharers: Sequence[Sharer],
    shared: SharedPrompt,
    mode: FusionMode = "parallel",
    past: tuple[KV, ...] = (),
    grafts: Mapping[int, Sequence[KV]] | None = None,
) -> FusedPrefill:
    """Compute `shared.stretches` of the receiver's prompt, corrected by the sharers.

    Sharers and receiver prefill concurrently, the receiver up to its first corrected stretch. If the sharers run on
    other devices, that stretch is corrected layer by layer as their layers arrive. `grafts` maps a token to the KV
    inserted before it, already at its positions and left uncorrected; a stretch must start or the last one end there
    (see `make_room`). Each KV layer is (1, kv_heads, positions, head_dim).
    """
    row = _Row(receiver, shared, past, dict(grafts or {}))
    passes = list(_passes(shared.stretches, row.grafts))
    ahead = next((index + 1 for index, stretches in enumerate(passes) if stretches[-1].pairs), len(passes))
    sizes = tuple(ResidualNorms() for _ in sharers)
    streamed = _can_stream(receiver, sharers, passes[ahead - 1][-1] if passes else None)
    stream = LayerStream(receiver.model.device, streamed=streamed)
    readers = [
        partial(_read_sharer, j, sharer, text, stream)
        for j, (sharer, text) in enumerate(zip(sharers, shared.sharers, strict=True))
    ]

    async def begin() -> float:
        await row.read(passes[:ahead])
        if not streamed or row.kv is None:
            return 0.0
        began = perf_counter()
        sources = _sources(receiver, sharers, row.kv, passes[ahead - 1][-1], sizes)
        fusers = {j: sharers[j].fuser for j in sources}
        row.correct(await correct_as_they_come(receiver, row.kv, stream, fusers, sources, mode))
        return perf_counter() - began

    calls: list[Callable[[], Awaitable[Any]]] = [*readers, begin]
    *sharer_reads, seconds = await run_all(calls)
    caches = [stream.whole(j) for j in range(len(sharers))]
    seconds += sum(sharer_read.seconds for sharer_read in sharer_reads)
    for index in range(ahead if streamed else ahead - 1, len(passes)):
        if index >= ahead:
            await row.read([passes[index]])
        stretch = passes[index][-1]
        if stretch.pairs and row.kv is not None:
            began = perf_counter()
            row.correct(await _correct(receiver, sharers, caches, row.kv, stretch, mode, sizes))
            seconds += perf_counter() - began
    behind = row.grafts.pop(shared.end, ())
    row.segments, row.uncorrected = (*row.segments, *behind), (*row.uncorrected, *behind)
    total = Cost()
    for sharer_read in sharer_reads:
        total.add(sharer_read.cost)
    rows = tuple(sharer_read.segments for sharer_read in sharer_reads)
    nbytes = tuple(
        _bytes(j, sharer, layers, shared) for j, (sharer, layers) in enumerate(zip(sharers, caches, strict=True))
    )
    return FusedPrefill(row.segments, row.uncorrected, rows, nbytes, sizes, row.cost, total, seconds)


def _passes(stretches: Sequence[Stretch], grafts: Collection[int]) -> Iterator[list[Stretch]]:
    """Group stretches into prefill passes. A pass ends at a corrected stretch or before a graft."""
    together: list[Stretch] = []
    for stretch in stretches:
        if together and (together[-1].pairs or stretch.start in grafts):
            yield together
            together = []
        together.append(stretch)
    if together:
        yield together


@dataclass(eq=False)
class _Row:
    """The receiver's row under construction. `kv` is its last stretch, after `before`; `correct` replaces it."""

    engine: Engine
    shared: SharedPrompt
    segments: tuple[KV, ...]
    grafts: dict[int, Sequence[KV]]  # not inserted yet
    before: tuple[KV, ...] = ()
    uncorrected: tuple[KV, ...] = ()
    kv: KV | None = None
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self.uncorrected = self.segments

    async def read(self, passes: Sequence[Sequence[Stretch]]) -> None:
        for stretches in passes:
            start, last, end = stretches[0].start, stretches[-1].start, stretches[-1].end
            ids, at = self.shared.ids[start:end], self.shared.positions
            piece = at[start:end] if at is not None else None
            self.before = (*self.segments, *self.grafts.pop(start, ()))
            done = await self.engine.prefill(ids, self.before, positions=piece)
            self.cost.add(done.cost)
            self.segments = self.uncorrected = done.segments
            self.kv = done.kv
            if last > start and self.kv is not None:
                front, self.kv = self.kv.split(last - start)
                self.before = (*self.before, front)
                self.segments = self.uncorrected = (*self.before, self.kv)

    def correct(self, kv: KV) -> None:
        self.segments = (*self.before, kv)


class _SharerRead(NamedTuple):
    """A sharer's row, its engine cost, and the seconds spent to prepare it for the fuser."""

    segments: tuple[KV, ...]
    cost: Cost
    seconds: float = 0.0


def _can_stream(receiver: Engine, sharers: Sequence[Sharer], stretch: Stretch | None) -> bool:
    """Whether the first corrected stretch can consume the sharers' layers while they are computed."""
    if stretch is None or not stretch.pairs:
        return False
    open_ones = [sharer for sharer in sharers if sharer.fuser.open_layers]
    apart = all(sharer.kv is None and on_other_devices(sharer.engine, receiver) for sharer in open_ones)
    # Every streaming sharer must correct this stretch; otherwise nothing waits for its layers.
    taking_part = all(j in stretch.pairs for j, sharer in enumerate(sharers) if sharer.fuser.open_layers)
    return bool(open_ones) and apart and taking_part


async def _read_sharer(j: int, sharer: Sharer, text: SharerPrompt, stream: LayerStream) -> _SharerRead:
    """Prefill a sharer unless it has already read its own prompt, and bring its layers to the receiver."""
    segments, cost = sharer.kv, Cost()
    if segments is None:
        depth = sharer.fuser.sharer_depth
        if not depth:
            return _SharerRead((), cost)
        send = stream.sender(j, _layer_as_read(sharer, text)) if stream.streamed else None
        done: Prefilled = await sharer.engine.prefill(text.ids, positions=text.positions, on_layer=send, layers=depth)
        segments, cost = done.segments, done.cost
    if sharer.alter is not None:
        segments = tuple(map(sharer.alter, segments))
    if not segments or stream.streamed:
        return _SharerRead(segments, cost)
    began = perf_counter()
    stream.fill(j, (await as_read(concat(segments), sharer.fuser, sharer.engine)).layers)
    return _SharerRead(segments, cost, perf_counter() - began)


async def _correct(
    receiver: Engine,
    sharers: Sequence[Sharer],
    caches: Sequence[Sequence[LayerKV] | None],
    kv: KV,
    stretch: Stretch,
    mode: FusionMode,
    sizes: Sequence[ResidualNorms],
) -> KV:
    by_sharer = _sources(receiver, sharers, kv, stretch, sizes)
    sources = [source(layers) for j, source in by_sharer.items() if (layers := caches[j]) is not None]
    fused = await receiver.call(lambda: fuse_layers(kv.layers, sources, mode))
    return replace(kv, layers=tuple(LayerKV(*layer) for layer in fused.layers))


def _sources(
    receiver: Engine, sharers: Sequence[Sharer], kv: KV, stretch: Stretch, sizes: Sequence[ResidualNorms]
) -> Mapping[int, Callable[[Sequence[LayerKV]], FuserInput]]:
    """By sharer with open gates, a function from its layers to the FuserInput for this stretch."""
    sources = {}
    for j, pairs in stretch.pairs.items():
        if (fuser := sharers[j].fuser).open_layers:
            rope = receiver_rope(fuser, receiver, kv.positions)
            both = (pairs.receiver, pairs.sharer)
            sources[j] = partial(FuserInput, fuser, pairs=both, sizes=sizes[j], rope=rope)
    return sources


def _layer_as_read(sharer: Sharer, text: SharerPrompt) -> Callable[[int, LayerKV], LayerKV]:
    """Apply `alter` and `as_read` to a single layer, in the sharer's thread."""
    at = torch.arange(len(text.ids)) if text.positions is None else text.positions
    unrotate = sharer.engine.model.rotation.shifter(-at) if sharer.fuser.card.rope == "unrotated" else None

    def change(layer: int, kv: LayerKV) -> LayerKV:
        kv = kv if sharer.alter is None else sharer.alter(KV((kv,), at)).layers[0]
        return kv if unrotate is None else LayerKV(unrotate(layer, kv.keys), kv.values)

    return change


def receiver_rope(fuser: Fuser, receiver: Engine, positions: Tensor) -> ReceiverRope | None:
    """The rotation of the receiver's keys at these positions, (positions,), if the fuser reads unrotated keys; else
    None.
    """
    return ReceiverRope(receiver.model.rotation, positions) if fuser.card.rope == "unrotated" else None


async def as_read(kv: KV, fuser: Fuser, sharer: SharerEngine) -> KV:
    """Prepare a sharer's cache, (1, kv_heads, positions, head_dim) by layer, for its fuser.

    Unrotates the keys on the sharer's engine if the card requires it.
    """
    return await sharer.call(lambda: sharer.model.rotation.unrotated(kv)) if fuser.card.rope == "unrotated" else kv


def _bytes(j: int, sharer: Sharer, layers: Sequence[LayerKV] | None, shared: SharedPrompt) -> int:
    """The bytes of the sharer layers that an open gate reads, at the paired positions."""
    if layers is None:
        return 0
    positions = sum(len(stretch.pairs[j].sharer) for stretch in shared.stretches if j in stretch.pairs)
    used = [layers[layer] for layer in sharer.fuser.sharer_layers]
    return sum(positions * (tensor.nbytes // max(tensor.shape[2], 1)) for layer in used for tensor in layer)
