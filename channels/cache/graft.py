"""Putting KV that a sender computed into a receiver's row, at the receiver's own positions."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch

from cachegraph.engine.kv.cache import KV
from cachegraph.engine.model.load import LoadedModel

from .sent_cache import CachePlane
from .translate import Translation

__all__ = [
    "Graft",
    "graft",
    "is_of_a_long_row",
    "why_no_graft",
    "why_no_state",
    "why_other_frequencies",
    "why_too_long",
]


class Graft(NamedTuple):
    """KV at its new positions, and of each entry the token and whose text it is."""

    kv: KV
    ids: list[int]
    origins: list[Any]


def why_no_graft(sender: LoadedModel, receiver: LoadedModel) -> str | None:
    """Why one model's KV can't be grafted into another's as it is; None where it can."""
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
    """Why a row that may grow to this length can take no part in a cache edge; None where it can.

    Its keys would all be computed once more at the border, and nobody could do that for keys that came from elsewhere.
    """
    by_length, length = model.info.by_length, min(length, model.info.max_positions)
    if by_length is None or length <= by_length.border:
        return None
    return (
        f"a row of {model.name!r} may grow to {length} positions here with its reply, and beyond {by_length.border} it "
        "rotates all keys by other frequencies"
    )


def is_of_a_long_row(segments: Sequence[KV]) -> bool:
    """Whether keys have other RoPE frequencies than those of shorter rows."""
    return any(segment.factors for segment in segments)


def why_other_frequencies(model: LoadedModel, kvs: Sequence[KV], prompt: int, reply: int) -> str | None:
    """Why a prompt of so many positions, these among them, and a reply of so many can't have the RoPE frequencies that
    these keys have; None where it has them."""
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
    plane: CachePlane,
    receiver: LoadedModel,
    start: int,
    seen: Collection[str],
    carries: Literal["prompt", "reply", "all"],
    translation: Translation | None = None,
    front: Sequence[int] | None = None,
) -> Graft | None:
    """What the receiver has not read, moved to positions from `start` on; None where it has read it all.

    `front` is the tokens in front of it, where the receiver alone computed them. A recurrent state goes over where they
    are what the sender's row has in front of it too: then the receiver's row is the sender's.

    Keys are rotated (KVCOMM, arXiv 2510.12872, does the same for one offset); values are shared. Entries that already
    stand where they should are shared whole, and receivers that want the same thing at the same place share one copy.
    Another model's entries are translated first, each to one of the receiver's.
    """
    wanted = (receiver.devices, start, carries, frozenset(seen) & plane.names, translation)
    if wanted not in plane.grafts:
        private = plane.private(seen, carries)
        if private is None:
            return None
        kv, ids = private.kv, private.ids
        if translation is not None:
            kv, ids = translation.kv(kv), translation.ids(ids)
        kv = kv.to(receiver.devices, receiver.dtype)
        places = torch.arange(start, start + len(kv))
        bound = receiver.info.states and receiver.rotation.why_not is not None  # and what would move has no state
        moved = kv if bound else receiver.rotation.move(kv, places)
        plane.grafts[wanted] = Graft(moved, ids, private.origins)
    taken: Graft = plane.grafts[wanted]
    if taken.kv.state is not None and not (start == 0 or _begins_alike(plane, start, front)):
        return taken._replace(kv=replace(taken.kv, state=None))
    return taken


def _begins_alike(plane: CachePlane, start: int, front: Sequence[int] | None) -> bool:
    return front is not None and not plane.corrected and list(front) == list(plane.ids[:start])


def why_no_state(plane: CachePlane, receiver: LoadedModel, brought: Graft, *, closes: bool) -> str | None:
    """Why a receiver with recurrent layers can't continue behind a graft; None where it can. `closes`: it ends the
    prompt."""
    if not receiver.info.states:
        return None
    keeps = f"{receiver.name!r} keeps a recurrent state beside its KV cache, and"
    if brought.kv.state is not None:
        behind = f"{keeps} decoding begins with the prompt's last token, in front of which no state was kept"
        return f"{behind}; write something behind the slot" if closes else None
    return (
        f"{keeps} that goes over only where the receiver's row begins with the very tokens of the sender's row, "
        f"up to the end of what {plane.sender!r} hands over"
    )
