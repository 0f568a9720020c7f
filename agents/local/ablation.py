"""Controls: replace received caches with zeros or those of another example, to test whether the content matters."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.cache.shared_prompt import Pairs, SharedPrompt, Stretch
from cachegraph.engine.kv.cache import KV, LayerKV
from cachegraph.errors import ChannelError

from ..base import Control, Delivery

__all__ = ["mismatched_prompt", "received_cache", "zeros"]


def zeros(kv: KV) -> KV:
    """As many entries at the same positions, all 0."""
    layers = tuple(LayerKV(torch.zeros_like(k), torch.zeros_like(v)) for k, v in kv.layers)
    return KV(layers, kv.positions, kv.factors, None if kv.state is None else kv.state.map(torch.zeros_like))


def received_cache(delivery: Delivery, control: Control | None) -> SentCache | None:
    """The cache that came over this edge, or under a mismatched control the one that came over it in the other turn."""
    if control is None or control.other is None:
        return delivery.payload.cache
    sender = delivery.route.edge.sender
    return next((each.payload.cache for each in control.other.deliveries if each.route.edge.sender == sender), None)


def mismatched_prompt(mine: SharedPrompt, other: SharedPrompt) -> SharedPrompt:
    """The receiver reads its own prompt, the sharers the other one.

    The receiver's k-th paired position of a stretch gets the sharer's k-th of the other prompt's same stretch; what one
    of them has more of is left alone. Where the stretches don't correspond, the whole prompts are taken as one.
    """
    if mine.positions is not None and other.positions is None:
        raise ChannelError("the other example's prompt is laid out differently, so its cache can't be swapped in")
    ours, theirs = mine.stretches, other.stretches
    if len(ours) == len(theirs):
        groups = [(stretch.pairs, there.pairs) for stretch, there in zip(ours, theirs, strict=True)]
        stretches = [Stretch(at.start, at.end, _clip(*group)) for at, group in zip(ours, groups, strict=True)]
    else:
        stretches = _flat(mine, other)
    while stretches and not stretches[-1].pairs:
        stretches.pop()
    return replace(mine, sharers=other.sharers, stretches=stretches)


def _clip(mine: Mapping[int, Pairs], other: Mapping[int, Pairs]) -> dict[int, Pairs]:
    clipped = {}
    for sharer in mine.keys() & other.keys():
        count = min(len(mine[sharer].receiver), len(other[sharer].sharer))
        if count:
            clipped[sharer] = Pairs(mine[sharer].receiver[:count], other[sharer].sharer[:count])
    return dict(sorted(clipped.items()))


def _flat(mine: SharedPrompt, other: SharedPrompt) -> list[Stretch]:
    """Each stretch takes as many of the other prompt's sharer positions as it needs, in their order."""
    waiting: dict[int, torch.Tensor] = {
        sharer: torch.cat([at.pairs[sharer].sharer for at in other.stretches if sharer in at.pairs])
        for sharer in {sharer for at in other.stretches for sharer in at.pairs}
    }
    stretches = []
    for at in mine.stretches:
        taken: dict[int, Pairs] = {}
        for sharer, pairs in at.pairs.items():
            rest: Sequence[int] | torch.Tensor = waiting.get(sharer, torch.empty(0, dtype=torch.int64))
            there = torch.as_tensor(rest)[: len(pairs.receiver)]
            if len(there):
                taken[sharer] = Pairs(pairs.receiver[: len(there)], there)
                waiting[sharer] = torch.as_tensor(rest)[len(there) :]
        stretches.append(Stretch(at.start, at.end, taken))
    return stretches
