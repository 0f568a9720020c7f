"""Align one prompt between a receiver and its sharers: from chat messages to the tokens of each."""

from collections.abc import Sequence

from cachegraph.channels.cache.align import Aligner, SharedSpan, TokenizedChat, align_offsets
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
from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import ChannelError

from ..prompt.chat_layout import Message, lay_out, words_of
from ..prompt.prompt import Piece, Prompt

__all__ = ["pair_own_prompts", "share_messages", "share_prompt", "why_not_shared"]


def why_not_shared(plans: Sequence[FusePlan], caches: Sequence[SentCache | None]) -> str | None:
    """Why these sharers can't share any prompt together; None if they can.

    `caches` holds what each sharer sent, None if it sent none.
    """
    kinds = {(plan.alignment if plan.alignment == "ids" else "own", plan.reads) for plan in plans}
    if len(kinds) > 1:
        return "the fusers of its edges read the prompt in different ways; use fusers trained alike"
    if kinds and plans[0].reads == "own-prompt":
        if None in caches:
            return "a sharer that reads its own prompt has handed over no cache"
        if any(cache is not None and cache.replies for cache in caches):
            return "a fuser reads the cache of one turn, and this one is joined of several"
    elif len({_aligner(plan) is None for plan in plans}) > 1:
        return "the fusers of its edges align tokens in different ways; use fusers trained alike"
    return None


def share_prompt(prompt: Prompt, plans: Sequence[FusePlan], caches: Sequence[SentCache | None]) -> SharedPrompt:
    """Align `prompt` between receiver and sharers. Requires plans and caches that `why_not_shared` accepts.

    Raises ChannelError if the prompt is too long for a sharer or its chats can't be aligned.
    """
    piece = prompt.whole
    if plans[0].reads == "own-prompt":
        shared = pair_own_prompts(piece, [(cache.ids, cache.origins) for cache in caches if cache is not None])
    elif plans[0].alignment == "ids":
        shared = share_by_ids(piece.ids, len(plans))
    else:
        shared = share_messages(prompt, piece, plans)
    for plan, read in zip(plans, shared.sharers, strict=True):
        limit = plan.sharer.model.info.max_positions
        if len(read.ids) > limit:
            raise ChannelError(
                f"the prompt has {len(read.ids)} tokens for {plan.sharer.model.name!r}, which reads {limit}"
            )
    return shared


def share_messages(prompt: Prompt, piece: Piece, plans: Sequence[FusePlan]) -> SharedPrompt:
    """Align the receiver's messages, which each sharer tokenizes with its own chat template. All plans use one
    alignment.
    """
    receiver = TokenizedChat(piece.ids, piece.offsets, piece.contents)
    sharers = [_tokenized(prompt.messages, plan.sharer.model.tokenizer, prompt.chat) for plan in plans]
    aligners = [aligner for plan in plans if (aligner := _aligner(plan)) is not None]
    return share_by_sections(aligners, receiver, sharers) if aligners else share_by_offsets(receiver, sharers)


def _aligner(plan: FusePlan) -> Aligner | None:
    """The aligner for alignment token by token; None for character offsets or equal token ids."""
    return None if plan.alignment == "offsets" else plan.aligner


def _tokenized(messages: Sequence[Message], tokenizer: Tokenizer | None, chat: bool) -> TokenizedChat:
    assert tokenizer is not None
    chat = chat and tokenizer.has_chat
    text, marks, contents = lay_out(messages, tokenizer, chat, slots=False)
    encoded = tokenizer.encode(text, special=not chat, words=words_of(marks))
    return TokenizedChat(encoded.ids, encoded.offsets, contents)


def pair_own_prompts(piece: Piece, sharers: Sequence[tuple[Sequence[int], Sequence[Origin | None]]]) -> SharedPrompt:
    """Pair sharers' own prompts, (ids, origins), with the receiver's: text in both is paired character by character."""
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
