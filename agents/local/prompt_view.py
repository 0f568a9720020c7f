"""The view of a settled prompt: whose text each token is, what was grafted, and what sharers corrected."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.payload import KVSpan, Origin
from cachegraph.engine.text.tokenizer import Tokenizer

from ..prompt.prompt import Piece, Prompt, Slot
from ..prompt.prompt_view import PartKind, PromptPart, TokenAlignment, join_parts
from .inbox import FuseDelivery, Inbox
from .settle import SettledPrompt

__all__ = ["LocalPromptView", "view_of"]

Pair = tuple[int, int]  # a token of the receiver's own prompt, a token of the sharer


@dataclass(frozen=True)
class _Graft:
    """Entries of a sender's cache in a slot of the prompt. It holds no KV."""

    sender: str
    ids: Sequence[int]
    origins: Sequence[Origin | None]
    tokenizer: Tokenizer  # of the model whose ids they are


@dataclass(frozen=True)
class _Sharer:
    """A sharer that corrected the prompt."""

    sender: str
    ids: Sequence[int]
    pairs: Sequence[Pair]
    tokenizer: Tokenizer


@dataclass(frozen=True)
class _Token:
    """A token of the receiver's row. `own`: its index in the receiver's own prompt, None if it was grafted."""

    text: str
    origin: Origin | None
    own: int | None
    graft: str | None = None


@dataclass(frozen=True, eq=False)
class LocalPromptView:
    """The prompt of a model on this machine."""

    prompt: Prompt
    grafts: Sequence[_Graft | None]  # by part of the prompt
    sharers: Sequence[_Sharer]

    @property
    def tokens(self) -> int:
        return len(self.prompt.ids) + sum(len(graft.ids) for graft in self.grafts if graft is not None)

    def parts(self) -> list[PromptPart]:
        by: dict[int, list[str]] = {}
        for sharer in self.sharers:
            for own in dict.fromkeys(own for own, _ in sharer.pairs):
                by.setdefault(own, []).append(sharer.sender)
        return join_parts(_part(token, by) for token in self._row())

    def alignments(self) -> dict[str, list[TokenAlignment]]:
        row = list(self._row())
        texts = [token.text for token in row]
        place = {token.own: index for index, token in enumerate(row) if token.own is not None}
        found: dict[str, list[TokenAlignment]] = {}
        for sharer in self.sharers:
            pairs = [(place[own], other) for own, other in sharer.pairs if own in place]
            fused = TokenAlignment("fuse", texts, sharer.tokenizer.texts(sharer.ids), pairs)
            found.setdefault(sharer.sender, []).append(fused)
        for graft in self.grafts:
            if graft is not None:
                at = [index for index, token in enumerate(row) if token.graft == graft.sender]
                pairs = list(zip(at, range(len(at)), strict=True))
                taken = TokenAlignment("graft", texts, graft.tokenizer.texts(graft.ids), pairs)
                found.setdefault(graft.sender, []).append(taken)
        return found

    def _row(self) -> Iterator[_Token]:
        own = 0
        for part, graft in zip(self.prompt.parts, self.grafts, strict=True):
            if isinstance(part, Piece):
                for text, origin in zip(_texts(part), part.origins, strict=True):
                    yield _Token(text, origin, own)
                    own += 1
            elif graft is not None:
                for text, origin in zip(graft.tokenizer.texts(graft.ids), graft.origins, strict=True):
                    yield _Token(text, origin, None, graft.sender)


def view_of(settled: SettledPrompt, inbox: Inbox, tokenizer: Tokenizer) -> LocalPromptView:
    """Build the view; `tokenizer` is the receiver's."""
    caches = {received.sender: received for received in inbox.grafts()}
    grafts: list[_Graft | None] = []
    for part, span in zip(settled.prompt.parts, settled.grafts, strict=True):
        graft = None
        if isinstance(part, Slot) and span is not None:
            delivery, plan = caches[part.sender]
            sharer = plan.translation.sharer.tokenizer if plan.translation is not None else tokenizer
            ids = span.ids if plan.translation is None else _sent_ids(span, delivery.payload.cache)
            graft = _Graft(part.sender, ids or span.ids, span.origins, sharer if ids and sharer else tokenizer)
        grafts.append(graft)
    return LocalPromptView(settled.prompt, grafts, list(_sharers(settled)))


def _sharers(settled: SettledPrompt) -> Iterator[_Sharer]:
    shared = settled.shared
    if shared is None or len(shared.ids) != len(settled.prompt.ids):
        return
    sharing: Sequence[FuseDelivery] = settled.sharing
    for index, (fuse, read) in enumerate(zip(sharing, shared.sharers, strict=True)):
        tokenizer = fuse.plan.sharer.model.tokenizer
        if tokenizer is None or not fuse.plan.fuser.open_layers:
            continue
        pairs: list[Pair] = []
        for stretch in shared.stretches:
            if (pair := stretch.pairs.get(index)) is not None:
                own = [stretch.start + at for at in pair.receiver.tolist()]
                pairs += zip(own, pair.sharer.tolist(), strict=True)
        yield _Sharer(fuse.sender, read.ids, pairs, tokenizer)


def _sent_ids(span: KVSpan, cache: SentCache | None) -> list[int] | None:
    """The sender's ids of translated entries, which have the receiver's; None if they can't be told apart."""
    wanted = set(span.origins)
    found = [id_ for id_, origin in zip(cache.ids, cache.origins, strict=True) if origin in wanted] if cache else []
    return found if len(found) == len(span) else None


def _part(token: _Token, by: dict[int, list[str]]) -> PromptPart:
    source = token.origin.name if token.origin is not None else None
    if token.graft is not None:
        return PromptPart("grafted", token.text, 1, source, (token.graft,))
    assert token.own is not None
    if (senders := by.get(token.own)) is not None:
        return PromptPart("fused", token.text, 1, source, tuple(senders))
    kind: PartKind = "template" if token.origin is None else "words"
    return PromptPart(kind, token.text, 1, source)


def _texts(piece: Piece) -> Iterator[str]:
    """The text of each token, up to where the next one starts, so that they add up to the piece's text."""
    starts = [start for start, _ in piece.offsets]
    ends = [*starts[1:], len(piece.text)]
    first = 0
    for end in ends:
        end = max(end, first)
        yield piece.text[first:end]
        first = end
