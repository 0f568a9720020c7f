"""One prompt, read by a receiver and its sharers: from messages to everybody's tokens."""

from collections.abc import Sequence

from cachegraph.channels.cache.align import SharedSpan, TokenizedChat, align_offsets
from cachegraph.channels.cache.edge_plan import FusePlan
from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.cache.shared_prompt import (
    SharedPrompt,
    SharerPrompt,
    pair_tokens,
    share_by_ids,
    share_by_offsets,
    share_by_sections,
)
from cachegraph.channels.payload import Origin
from cachegraph.engine.engine import Engine
from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import ChannelError

from ..base import Delivery
from ..prompt.chat_layout import Message, lay_out, words_of
from ..prompt.prompt import Piece, Prompt

__all__ = ["pair_own_prompts", "share_messages", "share_prompt"]


def share_prompt(
    prompt: Prompt,
    receiver: Engine,
    sharing: Sequence[tuple[Delivery, FusePlan]],
    planes: Sequence[SentCache | None],
) -> SharedPrompt:
    """How all of them read `prompt`; `planes` is what sharers that read their own prompts have brought.

    Raises ChannelError where they can't read it together, or not all of it.
    """
    plans = [plan for _, plan in sharing]
    kinds = {(plan.alignment if plan.alignment == "ids" else "own", plan.reads) for plan in plans}
    if len(kinds) > 1:
        raise ChannelError("the fusers of its edges read the prompt in different ways; use fusers trained alike")
    piece = prompt.whole
    if plans[0].reads == "own-prompt":
        brought = [plane for plane in planes if plane is not None]
        if len(brought) < len(plans):
            raise ChannelError("a sharer that reads its own prompt has handed over no cache")
        if any(plane.replies for plane in brought):
            raise ChannelError("a fuser reads the cache of one turn, and this one is joined of several")
        reading = pair_own_prompts(piece, [(plane.ids, plane.origins) for plane in brought])
    elif plans[0].alignment == "ids":
        reading = share_by_ids(piece.ids, len(plans))
    else:
        reading = share_messages(prompt, piece, plans)
    for plan, text in zip(plans, reading.sharers, strict=True):
        limit = plan.sharer.model.info.max_positions
        if len(text.ids) > limit:
            raise ChannelError(
                f"the prompt has {len(text.ids)} tokens for {plan.sharer.model.name!r}, which reads {limit}"
            )
    return reading


def share_messages(prompt: Prompt, piece: Piece, plans: Sequence[FusePlan]) -> SharedPrompt:
    """Sharers read the receiver's messages in their own chat format."""
    mine = TokenizedChat(piece.ids, piece.offsets, piece.contents)
    theirs = [_reading(prompt.messages, plan.sharer.model.tokenizer, prompt.chat) for plan in plans]
    aligners = [plan.aligner for plan in plans if plan.aligner is not None and plan.alignment != "offsets"]
    if len(aligners) == len(plans):
        return share_by_sections(aligners, mine, theirs)
    if aligners:
        raise ChannelError("the fusers of its edges align tokens in different ways; use fusers trained alike")
    return share_by_offsets(mine, theirs)


def _reading(messages: Sequence[Message], tokenizer: Tokenizer | None, chat: bool) -> TokenizedChat:
    assert tokenizer is not None
    chat = chat and tokenizer.has_chat
    text, marks, contents = lay_out(messages, tokenizer, chat, slots=False)
    encoded = tokenizer.encode(text, special=not chat, words=words_of(marks))
    return TokenizedChat(encoded.ids, encoded.offsets, contents)


def pair_own_prompts(piece: Piece, sharers: Sequence[tuple[Sequence[int], Sequence[Origin | None]]]) -> SharedPrompt:
    """Sharers have read prompts of their own, (ids, origins); what stands in both is paired character by character."""
    by_sharer = [_same_characters(piece, origins) for _, origins in sharers]
    return pair_tokens(piece.ids, [SharerPrompt(ids) for ids, _ in sharers], by_sharer)


def _same_characters(piece: Piece, origins: Sequence[Origin | None]) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for name in {origin.name for origin in piece.origins if origin}:
        receiver, sharer = _tokens_of(name, piece.origins), _tokens_of(name, origins)
        if not sharer:
            continue
        length = max(end for _, end in sharer.values())
        aligned = align_offsets([*receiver.values()], [*sharer.values()], [SharedSpan(0, 0, length)])
        own, other = [*receiver], [*sharer]
        pairs += [(own[a], other[b]) for a, b in aligned]
    return pairs


def _tokens_of(name: str, origins: Sequence[Origin | None]) -> dict[int, tuple[int, int]]:
    """By token of this input or agent, the characters of its text that the token covers."""
    return {at: (origin.start, origin.end) for at, origin in enumerate(origins) if origin and origin.name == name}
