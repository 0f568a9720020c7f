"""SharedPrompt: the tokens and positions of one prompt for receiver and sharers, and the pairs of positions.

The receiver's prompt is computed section by section. The K and V of a shared section are corrected before the next
section is computed, so later sections attend to corrected entries, as in Cache-to-Cache (arXiv 2510.03215). Padding is
never computed: if one model's template is longer, the other's positions leave a gap.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cachegraph.errors import ChannelError

from .align import Aligner, SharedSpan, TokenizedChat, align_chat, align_offsets

__all__ = [
    "Pairs",
    "SharedPrompt",
    "SharerPrompt",
    "Stretch",
    "make_room",
    "pair_tokens",
    "share_by_ids",
    "share_by_offsets",
    "share_by_sections",
]


class Pairs(NamedTuple):
    """Index tensors of equal length, (pairs,): receiver positions within a stretch, and positions in the sharer's
    cache.
    """

    receiver: Tensor
    sharer: Tensor


class Stretch(NamedTuple):
    """Receiver tokens [start, end), with pairs by sharer. Empty pairs: no sharer corrects this stretch."""

    start: int
    end: int
    pairs: Mapping[int, Pairs]


@dataclass(frozen=True, eq=False)
class SharerPrompt:
    """The tokens and positions, (tokens,) int64, that one sharer prefills. Positions None: 0, 1, 2, ..."""

    ids: Sequence[int]
    positions: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SharedPrompt:
    """One prompt as receiver and sharers tokenize it. Decoding starts with the tokens after the last stretch.

    `positions` are the receiver's, (tokens,) int64; None: 0, 1, 2, ...
    """

    ids: Sequence[int]
    positions: Tensor | None
    sharers: Sequence[SharerPrompt]
    stretches: Sequence[Stretch] = field(default=())

    @property
    def end(self) -> int:
        """The end of the last stretch, where decoding starts."""
        return self.stretches[-1].end if self.stretches else 0

    @property
    def fused(self) -> int:
        """The number of receiver positions that at least one sharer corrects."""
        return sum(
            len(torch.unique(torch.cat([pair.receiver for pair in stretch.pairs.values()])))
            for stretch in self.stretches
            if stretch.pairs
        )


def share_by_ids(ids: Sequence[int], sharers: int) -> SharedPrompt:
    """Share a prompt between models of one tokenizer: every token but the last is paired with itself."""
    shared = len(ids) - 1
    if shared < 1:
        return SharedPrompt(ids, None, [SharerPrompt([]) for _ in range(sharers)])
    same = Pairs(torch.arange(shared), torch.arange(shared))
    stretch = Stretch(0, shared, dict.fromkeys(range(sharers), same))
    return SharedPrompt(ids, None, [SharerPrompt(ids[:shared]) for _ in range(sharers)], [stretch])


def share_by_sections(
    aligners: Sequence[Aligner], receiver: TokenizedChat, sharers: Sequence[TokenizedChat]
) -> SharedPrompt:
    """Align chats section by section with padding (strategies `first` and `longest`), for any number of sharers.

    Raises ChannelError if the prompt has no message, or the numbers of messages differ.
    """
    if not receiver.contents:
        raise ChannelError("the receiver's prompt has no message to align")
    pairwise = [align_chat(aligner, receiver, sharer) for aligner, sharer in zip(aligners, sharers, strict=True)]
    own = [_unpadded(chat.receiver_ids, chat.receiver_padding, chat.sections) for chat in pairwise]
    others = [_unpadded(chat.sharer_ids, chat.sharer_padding, chat.sections) for chat in pairwise]
    kinds = [section.kind for section in pairwise[0].sections]
    lengths = [max(len(part) for part in parts) for parts in zip(*own, *others, strict=True)]
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    stretches, token, rows = [], 0, [0] * len(sharers)
    for index, kind in enumerate(kinds):
        count = len(own[0][index])
        pairs = {}
        if kind == "message" and count:
            pairs = {j: Pairs(torch.arange(count), torch.arange(rows[j], rows[j] + count)) for j in range(len(sharers))}
        stretches.append(Stretch(token, token + count, pairs))
        token += count
        rows = [row + len(parts[index]) for row, parts in zip(rows, others, strict=True)]
    stretches = _last_token_apart(stretches, token)
    readings = [SharerPrompt(_flat(parts), _positions(parts, starts)) for parts in others]
    return SharedPrompt(_flat(own[0]), _positions(own[0], starts), _needed(readings, stretches), stretches)


def share_by_offsets(receiver: TokenizedChat, sharers: Sequence[TokenizedChat]) -> SharedPrompt:
    """Tokenize natively; pair each receiver token with the sharer token that covers its last character.

    Raises ChannelError if the numbers of contents differ.
    """
    if any(len(sharer.contents) != len(receiver.contents) for sharer in sharers):
        raise ChannelError("receiver and sharer render the same messages into different numbers of contents")
    by_sharer = []
    for sharer in sharers:
        spans = [
            SharedSpan(
                receiver_content[0],
                sharer_content[0],
                min(receiver_content[1] - receiver_content[0], sharer_content[1] - sharer_content[0]),
            )
            for receiver_content, sharer_content in zip(receiver.contents, sharer.contents, strict=True)
        ]
        by_sharer.append(align_offsets(receiver.offsets, sharer.offsets, spans))
    shared = pair_tokens(receiver.ids, [SharerPrompt(sharer.ids) for sharer in sharers], by_sharer)
    return replace(shared, sharers=_needed(shared.sharers, shared.stretches))


def pair_tokens(
    ids: Sequence[int], sharers: Sequence[SharerPrompt], by_sharer: Sequence[Iterable[tuple[int, int]]]
) -> SharedPrompt:
    """Share a prompt with given pairs, by sharer: (receiver token, sharer token). The last token starts the decoding,
    so its pairs are dropped.
    """
    by_token: dict[int, dict[int, int]] = {}
    for j, pairs in enumerate(by_sharer):
        for receiver_token, sharer_token in pairs:
            by_token.setdefault(receiver_token, {})[j] = sharer_token
    by_token.pop(len(ids) - 1, None)
    return SharedPrompt(ids, None, sharers, _stretches(by_token, len(ids)))


def make_room(shared: SharedPrompt, grafts: Sequence[tuple[int, int]]) -> SharedPrompt:
    """Make room for grafts, given as (token to insert before, number of entries).

    A stretch is split at each such token; explicit positions after it move up.
    """
    cuts = [token for token, _ in grafts]
    stretches = list(shared.stretches)
    covered = stretches[-1].end if stretches else 0
    if cuts and cuts[-1] > covered:
        stretches.append(Stretch(covered, cuts[-1], {}))
    for cut in cuts:
        stretches = [part for at in stretches for part in (_cut(at, cut) if at.start < cut < at.end else [at])]
    positions = shared.positions
    if positions is not None:
        positions = positions.clone()
        for token, count in grafts:
            positions[token:] += count
    return replace(shared, stretches=stretches, positions=positions)


def _cut(at: Stretch, token: int) -> list[Stretch]:
    """Split a stretch before this token."""
    front: dict[int, Pairs] = {}
    back: dict[int, Pairs] = {}
    for j, (receiver, sharer) in at.pairs.items():
        before = receiver < token - at.start
        for half, chosen, moved in ((front, before, 0), (back, ~before, token - at.start)):
            if bool(chosen.any()):
                half[j] = Pairs(receiver[chosen] - moved, sharer[chosen])
    return [Stretch(at.start, token, front), Stretch(token, at.end, back)]


def _stretches(by_token: Mapping[int, Mapping[int, int]], length: int) -> list[Stretch]:
    """Runs of tokens that some sharer corrects, and the runs between them."""
    stretches: list[Stretch] = []
    start = 0
    for token in range(1, length + 1):
        if token == length or (token in by_token) != (start in by_token):
            pairs: dict[int, Pairs] = {}
            for j in sorted({j for index in range(start, token) for j in by_token.get(index, {})}):
                tokens = [index for index in range(start, token) if j in by_token.get(index, {})]
                pairs[j] = Pairs(torch.tensor(tokens) - start, torch.tensor([by_token[index][j] for index in tokens]))
            stretches.append(Stretch(start, token, pairs))
            start = token
    return stretches[:-1] if stretches and not stretches[-1].pairs else stretches


def _last_token_apart(stretches: list[Stretch], length: int) -> list[Stretch]:
    """Drop the stretches after the last fused one, and exclude the prompt's last token, from which decoding starts."""
    while stretches and not stretches[-1].pairs:
        stretches.pop()
    if stretches and stretches[-1].end == length:
        start, end, pairs = stretches.pop()
        if end - 1 > start:
            keep = {j: Pairs(pair.receiver[:-1], pair.sharer[:-1]) for j, pair in pairs.items()}
            stretches.append(Stretch(start, end - 1, keep))
    return stretches


def _needed(sharers: Sequence[SharerPrompt], stretches: Sequence[Stretch]) -> list[SharerPrompt]:
    """Truncate each sharer's prompt after its last paired token; the rest is never read."""
    cut = []
    for j, (ids, positions) in enumerate((sharer.ids, sharer.positions) for sharer in sharers):
        end = max((int(at.pairs[j].sharer.max()) + 1 for at in stretches if j in at.pairs), default=0)
        cut.append(SharerPrompt(ids[:end], positions[:end] if positions is not None else None))
    return cut


def _unpadded(ids: Sequence[int], padding: Sequence[bool], sections: Sequence[tuple[str, int, int]]) -> list[list[int]]:
    """By section, the ids without padding."""
    return [[ids[at] for at in range(start, end) if not padding[at]] for _, start, end in sections]


def _flat(parts: Sequence[Sequence[int]]) -> list[int]:
    return [token for part in parts for token in part]


def _positions(parts: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
    return torch.tensor([start + at for part, start in zip(parts, starts, strict=False) for at in range(len(part))])
