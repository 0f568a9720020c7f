"""Ablations: replace received caches with zeros or another example's, to test whether their content matters."""

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
    """Zero all keys and values, (1, kv_heads, positions, head_dim); positions are kept."""
    layers = tuple(LayerKV(torch.zeros_like(k), torch.zeros_like(v)) for k, v in kv.layers)
    return KV(layers, kv.positions, kv.factors, None if kv.state is None else kv.state.map(torch.zeros_like))


def received_cache(delivery: Delivery, control: Control | None) -> SentCache | None:
    """The cache received over this edge, or under a mismatched control, the one received over it in the other turn."""
    if control is None or control.other is None:
        return delivery.payload.cache
    sender = delivery.route.edge.sender
    return next((other.payload.cache for other in control.other.deliveries if other.route.edge.sender == sender), None)


def mismatched_prompt(own: SharedPrompt, other: SharedPrompt) -> SharedPrompt:
    """Pair the receiver's own prompt with the sharers' prompts of the other example.

    Within corresponding stretches, the k-th paired receiver position gets the k-th sharer position of the other prompt;
    surplus positions are dropped. If the stretches do not correspond, the prompts are paired as a whole. Raises
    ChannelError if the other prompt has no positions of its own where this one has.
    """
    if own.positions is not None and other.positions is None:
        raise ChannelError("the other example's prompt is laid out differently, so its cache can't be swapped in")
    own_stretches, other_stretches = own.stretches, other.stretches
    if len(own_stretches) == len(other_stretches):
        groups = [
            (stretch.pairs, other_stretch.pairs)
            for stretch, other_stretch in zip(own_stretches, other_stretches, strict=True)
        ]
        stretches = [Stretch(at.start, at.end, _clip(*group)) for at, group in zip(own_stretches, groups, strict=True)]
    else:
        stretches = _flat(own, other)
    while stretches and not stretches[-1].pairs:
        stretches.pop()
    return replace(own, sharers=other.sharers, stretches=stretches)


def _clip(own: Mapping[int, Pairs], other: Mapping[int, Pairs]) -> dict[int, Pairs]:
    clipped = {}
    for sharer in own.keys() & other.keys():
        count = min(len(own[sharer].receiver), len(other[sharer].sharer))
        if count:
            clipped[sharer] = Pairs(own[sharer].receiver[:count], other[sharer].sharer[:count])
    return dict(sorted(clipped.items()))


def _flat(own: SharedPrompt, other: SharedPrompt) -> list[Stretch]:
    """Each stretch takes as many of the other prompt's sharer positions as it needs, in order."""
    waiting: dict[int, torch.Tensor] = {
        sharer: torch.cat([at.pairs[sharer].sharer for at in other.stretches if sharer in at.pairs])
        for sharer in {sharer for at in other.stretches for sharer in at.pairs}
    }
    stretches = []
    for at in own.stretches:
        taken: dict[int, Pairs] = {}
        for sharer, pairs in at.pairs.items():
            rest: Sequence[int] | torch.Tensor = waiting.get(sharer, torch.empty(0, dtype=torch.int64))
            positions = torch.as_tensor(rest)[: len(pairs.receiver)]
            if len(positions):
                taken[sharer] = Pairs(pairs.receiver[: len(positions)], positions)
                waiting[sharer] = torch.as_tensor(rest)[len(positions) :]
        stretches.append(Stretch(at.start, at.end, taken))
    return stretches
