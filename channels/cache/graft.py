"""Graft a sender's KV into a receiver's row: rotate its keys to the receiver's positions."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from cachegraph.engine.kv.cache import KV
from cachegraph.engine.model.load import LoadedModel

from ..fusers.files.card import Carries
from ..payload import KVSpan
from .sent_cache import SentCache
from .translate import Translation

__all__ = [
    "graft",
    "is_of_a_long_row",
    "why_no_graft",
    "why_no_state",
    "why_other_frequencies",
    "why_too_long",
]


class _Wanted(NamedTuple):
    """The key under which a graft from one cache is memoized."""

    devices: tuple[torch.device, ...]
    start: int
    carries: Carries
    seen: frozenset[str]
    translation: Translation | None


# Grafts by cache. Receivers that want the same entries at the same positions share one.
_grafts: WeakKeyDictionary[SentCache, dict[_Wanted, KVSpan]] = WeakKeyDictionary()
_lock = Lock()  # guards `_grafts`: the engines of several receivers graft in their own threads


def why_no_graft(sender: LoadedModel, receiver: LoadedModel) -> str | None:
    """Why the sender's KV can't be grafted unchanged into the receiver; None if it can."""
    for model in (sender, receiver):
        if model.why_no_cache is not None:
            return f"{model.name!r} can't take part in a cache edge: {model.why_no_cache}"
    if sender.identity != receiver.identity:
        return f"{sender.name!r} and {receiver.name!r} are different models, and there is no fuser for the pair"
    if sender.dtype != receiver.dtype:
        return f"{sender.name!r} runs in {sender.dtype} here and in {receiver.dtype} there"
    if sender.weights != receiver.weights:
        return f"{sender.name!r} has {sender.weights or 'plain'} weights here and {receiver.weights or 'plain'} there"
    return None


def why_too_long(model: LoadedModel, length: int) -> str | None:
    """Why a row of up to `length` positions can't use a cache edge; None if it can.

    Beyond this length the model changes its RoPE frequencies and recomputes all keys, which is impossible for received
    ones.
    """
    by_length, length = model.info.by_length, min(length, model.info.max_positions)
    if by_length is None or length <= by_length.border:
        return None
    return (
        f"a row of {model.name!r} may grow to {length} positions here with its reply, and beyond {by_length.border} it "
        "rotates all keys by other frequencies"
    )


def is_of_a_long_row(segments: Sequence[KV]) -> bool:
    """Whether the keys use the RoPE frequencies of long rows."""
    return any(segment.factors for segment in segments)


def why_other_frequencies(model: LoadedModel, kvs: Sequence[KV], prompt: int, reply: int) -> str | None:
    """Why a row of `prompt` and `reply` positions can't use these keys' RoPE frequencies; None if it can."""
    if (by_length := model.info.by_length) is None:
        return None
    factors = by_length.factors(prompt)
    if by_length.factors(min(prompt + reply, model.info.max_positions)) != factors:
        return why_too_long(model, prompt + reply)
    if all(kv.factors == factors for kv in kvs):
        return None
    longer, shorter = ("receiver", "sender") if factors else ("sender", "receiver")
    return f"the {longer}'s row is so long that its keys have other RoPE frequencies than the {shorter}'s"


def graft(
    sent: SentCache,
    receiver: LoadedModel,
    start: int,
    seen: Collection[str],
    carries: Carries,
    translation: Translation | None = None,
    front: Sequence[int] | None = None,
) -> KVSpan | None:
    """Take the entries that the receiver has not read, as one segment at positions from `start` on; None if there are
    none.

    `seen` names the texts that the receiver has read. `front` is the receiver's tokens before `start`; None if a sharer
    corrected them. A recurrent state is kept only if `front` equals the tokens in the sender's row: then both rows
    match.

    Keys are rotated (KVCOMM, arXiv 2510.12872, does the same for one offset); values are shared. Entries already at
    these positions are shared whole. Entries of another model are translated first, one to one. Each KV layer is (1,
    kv_heads, positions, head_dim).
    """
    wanted = _Wanted(receiver.devices, start, carries, frozenset(seen) & sent.names, translation)
    with _lock:
        span = _grafts.get(sent, {}).get(wanted)
    if span is None:
        private = sent.private(seen, carries)
        if private is None:
            return None
        span = _moved(private, receiver, start, translation)
        with _lock:
            span = _grafts.setdefault(sent, {}).setdefault(wanted, span)
    (kv,) = span.segments
    if kv.state is not None and not (start == 0 or _begins_alike(sent, start, front)):
        return replace(span, segments=(replace(kv, state=None),))
    return span


def _moved(private: KVSpan, receiver: LoadedModel, start: int, translation: Translation | None) -> KVSpan:
    """Translate the span if needed and move it to the receiver's devices and positions from `start` on."""
    (kv,), ids = private.segments, private.ids
    if translation is not None:
        kv, ids = translation.kv(kv), translation.ids(ids)
    kv = kv.to(receiver.devices, receiver.dtype)
    # Rotating such keys drops the state, and `why_no_state` then refuses the graft.
    fixed = receiver.info.states and receiver.rotation.why_not is not None
    if not fixed:
        kv = receiver.rotation.move(kv, torch.arange(start, start + len(kv)))
    return KVSpan((kv,), ids, private.origins)


def _begins_alike(sent: SentCache, start: int, front: Sequence[int] | None) -> bool:
    return front is not None and not sent.corrected and list(front) == list(sent.ids[:start])


def why_no_state(sent: SentCache, receiver: LoadedModel, brought: KVSpan, *, closes: bool) -> str | None:
    """Why a receiver with recurrent layers can't continue after a graft; None if it can.

    `closes`: the graft ends the prompt.
    """
    if not receiver.info.states:
        return None
    keeps = f"{receiver.name!r} keeps a recurrent state beside its KV cache, and"
    if brought.segments[-1].state is not None:
        behind = f"{keeps} decoding begins with the prompt's last token, in front of which no state was kept"
        return f"{behind}; write something behind the slot" if closes else None
    return (
        f"{keeps} it can be handed over only where the receiver's row begins with exactly the tokens of the "
        f"sender's row, up to the end of what {sent.sender!r} hands over"
    )
