"""Align sharer tokens with receiver tokens, by token ids, strings and character offsets.

    ids       both models share a tokenizer: the same ids
    first     decode each receiver token and encode its text with the sharer's tokenizer; take the first token
    longest   the same, but take the token with the longest text
    offsets   each model tokenizes the text; take the sharer token that covers the receiver token's last character

`first`, `longest` and the section-wise alignment of chats follow Cache-to-Cache (arXiv 2510.03215).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from cachegraph.errors import ChannelError

__all__ = [
    "AlignedChat",
    "Aligner",
    "RawTokenizer",
    "Section",
    "SharedSpan",
    "TokenizedChat",
    "align_chat",
    "align_offsets",
    "token_range",
]


class RawTokenizer(Protocol):
    """The part of a transformers tokenizer that alignment uses."""

    pad_token_id: int | None
    eos_token_id: int | None
    bos_token_id: int | None
    unk_token_id: int | None
    all_special_ids: list[int]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str: ...
    def convert_tokens_to_ids(self, token: str) -> int | None: ...


@dataclass(frozen=True)
class Aligner:
    """Maps receiver tokens to sharer tokens one by one and caches the result of each."""

    receiver: RawTokenizer
    sharer: RawTokenizer
    strategy: Literal["ids", "first", "longest"] = "first"
    _known: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    def tokens(self, ids: Iterable[int]) -> list[int]:
        """Map each receiver token to one sharer token."""
        return [self.token(id_) for id_ in ids]

    def token(self, id_: int) -> int:
        if self.strategy == "ids":
            return id_
        if id_ not in self._known:
            self._known[id_] = self._choose(self.candidates(id_))
        return self._known[id_]

    def candidates(self, id_: int) -> list[int]:
        """Encode the receiver token's text with the sharer's tokenizer; returns at least one token."""
        text = _text(self.receiver, id_)
        if id_ in self.receiver.all_special_ids:
            return [self._special(id_, text)]
        return self.sharer.encode(text, add_special_tokens=False) or [self._unknown]

    @property
    def pad_ids(self) -> tuple[int, int]:
        """The ids that pad the receiver's and the sharer's row. Padding is masked, so any id would serve."""
        first, second = (
            next((id_ for id_ in (side.pad_token_id, side.eos_token_id) if id_ is not None), 0)
            for side in (self.receiver, self.sharer)
        )
        return first, second

    @property
    def _unknown(self) -> int:
        return self.sharer.unk_token_id or 0

    def _special(self, id_: int, text: str) -> int:
        receiver_pad, sharer_pad = self.pad_ids
        roles = {  # of roles that share an id the last counts, as in the published code
            receiver_pad: sharer_pad,
            self.receiver.eos_token_id: self.sharer.eos_token_id,
            self.receiver.bos_token_id: self.sharer.bos_token_id,
            self.receiver.unk_token_id: self.sharer.unk_token_id,
        }
        same_role = roles.get(id_)
        if same_role is not None:
            return same_role
        same_text = self.sharer.convert_tokens_to_ids(text)
        return same_text if same_text not in (None, self.sharer.unk_token_id) else self._unknown

    def _choose(self, candidates: list[int]) -> int:
        if self.strategy == "longest" and len(candidates) > 1:
            return max(candidates, key=lambda id_: len(_text(self.sharer, id_)))
        return candidates[0]


@dataclass(frozen=True)
class TokenizedChat:
    """A chat tokenized for one model: token ids, their character offsets, and the range of each message's content."""

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]
    contents: Sequence[tuple[int, int]]


class Section(NamedTuple):
    """A run of aligned ids: template text or one message."""

    kind: Literal["template", "message"]
    start: int
    end: int


@dataclass(frozen=True)
class AlignedChat:
    """Two aligned rows of equal length. Every field but `sections` has one entry per position."""

    receiver_ids: tuple[int, ...]
    sharer_ids: tuple[int, ...]
    message_mask: tuple[bool, ...]
    receiver_padding: tuple[bool, ...]  # True at padding
    sharer_padding: tuple[bool, ...]
    sections: tuple[Section, ...]


def align_chat(aligner: Aligner, receiver: TokenizedChat, sharer: TokenizedChat) -> AlignedChat:
    """Align two renderings of the same messages.

    Each side keeps its own template tokens; the shorter template is padded at its end. A message keeps the receiver's
    tokens, each paired with the sharer token that corresponds to it. Raises ChannelError if the numbers of messages
    differ.
    """
    if len(receiver.contents) != len(sharer.contents):
        raise ChannelError(
            f"the receiver's chat has {len(receiver.contents)} messages, the sharer's {len(sharer.contents)}; "
            "align renderings of the same messages"
        )
    rows = _Rows(aligner.pad_ids)
    receiver_sections, sharer_sections = _template_and_messages(receiver), _template_and_messages(sharer)
    for (kind, start, end), (_, other_start, other_end) in zip(receiver_sections, sharer_sections, strict=True):
        ids = receiver.ids[start:end]
        if kind == "message":
            rows.add(kind, ids, aligner.tokens(ids))
        else:
            rows.add(kind, ids, sharer.ids[other_start:other_end])
    return rows.done()


class SharedSpan(NamedTuple):
    """Text that both prompts contain: its start in each prompt, and its length in characters."""

    receiver_start: int
    sharer_start: int
    length: int


def align_offsets(
    receiver: Sequence[tuple[int, int]], sharer: Sequence[tuple[int, int]], spans: Sequence[SharedSpan]
) -> tuple[tuple[int, int], ...]:
    """Pair every receiver token whose last character is in a shared span with a sharer token: (receiver, sharer).

    If several sharer tokens cover that character, as the bytes of one emoji do, take the last: it has read all of it.
    Both inputs are character offsets of tokens; empty tokens are skipped.
    """
    covers: dict[int, int] = {}
    for token, (start, end) in enumerate(sharer):
        for character in range(start, end):
            covers[character] = token
    ordered = sorted(spans)
    pairs: list[tuple[int, int]] = []
    place = 0
    for token, (start, end) in sorted(enumerate(receiver), key=lambda item: item[1][1]):
        last = end - 1
        while place < len(ordered) and ordered[place].receiver_start + ordered[place].length <= last:
            place += 1
        if place == len(ordered):
            break
        span = ordered[place]
        if start < end and last >= span.receiver_start:
            other = covers.get(last - span.receiver_start + span.sharer_start)
            if other is not None:
                pairs.append((token, other))
    return tuple(sorted(pairs))


def token_range(offsets: Sequence[tuple[int, int]], start: int, end: int, first: int = 0) -> tuple[int, int]:
    """The range of tokens, from `first` on, that overlap the characters [start, end)."""
    while first < len(offsets) and offsets[first][1] <= start:
        first += 1
    last = first
    while start < end and last < len(offsets) and offsets[last][0] < end:
        last += 1
    return first, last


@dataclass
class _Rows:
    pads: tuple[int, int]
    ids: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    padding: tuple[list[bool], list[bool]] = field(default_factory=lambda: ([], []))
    mask: list[bool] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def add(self, kind: Literal["template", "message"], *parts: Sequence[int]) -> None:
        length = max(map(len, parts))
        start = len(self.mask)
        for ids, padding, pad, part in zip(self.ids, self.padding, self.pads, parts, strict=True):
            missing = length - len(part)
            ids += [*part, *[pad] * missing]
            padding += [False] * len(part) + [True] * missing
        self.mask += [kind == "message"] * length
        if length:
            self._note(Section(kind, start, start + length))

    def _note(self, section: Section) -> None:
        last = self.sections[-1] if self.sections else None
        if last and last.kind == section.kind == "template":
            section = Section("template", self.sections.pop().start, section.end)
        self.sections.append(section)

    def done(self) -> AlignedChat:
        return AlignedChat(
            tuple(self.ids[0]),
            tuple(self.ids[1]),
            tuple(self.mask),
            tuple(self.padding[0]),
            tuple(self.padding[1]),
            tuple(self.sections),
        )


def _template_and_messages(chat: TokenizedChat) -> list[Section]:
    """Token ranges: a template section before each message and after the last; any may be empty."""
    sections: list[Section] = []
    end = 0
    for start_char, end_char in chat.contents:
        start, stop = token_range(chat.offsets, start_char, end_char, first=end)
        sections += [Section("template", end, start), Section("message", start, stop)]
        end = stop
    return [*sections, Section("template", end, len(chat.ids))]


def _text(tokenizer: RawTokenizer, id_: int) -> str:
    return tokenizer.decode([id_], skip_special_tokens=False, clean_up_tokenization_spaces=False)
