"""Alignment of ids, strings and offsets with tokenizers small enough to read."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachegraph.channels.cache.align import (
    Aligner,
    Section,
    SharedSpan,
    TokenizedChat,
    align_chat,
    align_offsets,
    token_range,
)
from cachegraph.errors import ChannelError


@dataclass
class Words:
    """A tokenizer of listed words, the longest first; unlisted characters are dropped."""

    vocab: dict[str, int]
    pad_token_id: int | None = None
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    unk_token_id: int | None = None
    all_special_ids: list[int] = field(default_factory=list)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids = []
        while text:
            word = max((w for w in self.vocab if text.startswith(w)), key=len, default="")
            if word:
                ids.append(self.vocab[word])
            text = text[max(len(word), 1) :]
        return ids

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        names = {id_: word for word, id_ in self.vocab.items()}
        return "".join(names[id_] for id_ in ids)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self.vocab.get(token, self.unk_token_id)


RECEIVER = Words({"<e>": 0, "<b>": 1, "<t>": 2, "hello": 3, "!": 4}, eos_token_id=0, all_special_ids=[0, 1, 2])
SHARER = Words({"<x>": 9, "he": 10, "llo": 11, "<t>": 12}, eos_token_id=9, unk_token_id=7)


def test_first_and_longest_differ_where_a_token_splits() -> None:
    assert Aligner(RECEIVER, SHARER, "first").tokens([3]) == [10]
    assert Aligner(RECEIVER, SHARER, "longest").tokens([3]) == [11]
    assert Aligner(RECEIVER, SHARER, "ids").tokens([3, 4]) == [3, 4]


def test_special_tokens_align_by_role_then_by_text_then_as_unknown() -> None:
    assert Aligner(RECEIVER, SHARER).tokens([0, 2, 1]) == [9, 12, 7]


def test_a_text_the_sharer_cannot_read_is_unknown() -> None:
    assert Aligner(RECEIVER, SHARER).tokens([4]) == [7]


def test_of_roles_that_share_an_id_the_last_counts() -> None:
    receiver = Words({"<s>": 5}, pad_token_id=5, eos_token_id=5, bos_token_id=5, all_special_ids=[5])
    sharer = Words({"<p>": 1, "<e>": 2, "<b>": 3}, pad_token_id=1, eos_token_id=2, bos_token_id=3)
    assert Aligner(receiver, sharer).tokens([5]) == [3]


def test_shorter_template_sections_are_filled_up_and_messages_are_the_receivers() -> None:
    mine = TokenizedChat([3, 3, 3, 0], [(0, 5), (5, 10), (10, 15), (15, 18)], [(10, 15)])
    theirs = TokenizedChat([12, 10, 11, 9, 9, 9], [(0, 3), (3, 5), (5, 8), (8, 11), (11, 14), (14, 17)], [(3, 8)])
    chat = align_chat(Aligner(RECEIVER, SHARER), mine, theirs)
    assert chat.receiver_ids == (3, 3, 3, 0, 0, 0)
    assert chat.sharer_ids == (12, 9, 10, 9, 9, 9)
    assert chat.receiver_padding == (False, False, False, False, True, True)
    assert chat.sharer_padding == (False, True, False, False, False, False)
    assert chat.sections == (Section("template", 0, 2), Section("message", 2, 3), Section("template", 3, 6))


def test_an_empty_message_leaves_one_template_section() -> None:
    reading = TokenizedChat([3, 3], [(0, 5), (5, 10)], [(5, 5)])
    assert align_chat(Aligner(RECEIVER, SHARER), reading, reading).sections == (Section("template", 0, 2),)


def test_renderings_of_different_chats_are_refused() -> None:
    one, none = TokenizedChat([3], [(0, 5)], [(0, 5)]), TokenizedChat([3], [(0, 5)], [])
    with pytest.raises(ChannelError, match="1 messages, the sharer's 0"):
        align_chat(Aligner(RECEIVER, SHARER), one, none)


def test_a_token_that_straddles_a_spans_start_belongs_to_it() -> None:
    assert token_range([(0, 2), (2, 5), (5, 6), (6, 8)], 4, 6) == (1, 3)


def test_offsets_take_the_token_that_covers_the_last_character() -> None:
    receiver = [(0, 5), (5, 6), (6, 11)]
    sharer = [(0, 3), (3, 6), (6, 8), (8, 11)]
    assert align_offsets(receiver, sharer, [SharedSpan(0, 0, 11)]) == ((0, 1), (1, 1), (2, 3))


def test_offsets_take_the_last_of_the_bytes_of_one_character() -> None:
    receiver, sharer = [(0, 1), (1, 2)], [(0, 1), (1, 2), (1, 2), (1, 2)]
    assert align_offsets(receiver, sharer, [SharedSpan(0, 0, 2)]) == ((0, 0), (1, 3))
    assert align_offsets(sharer, receiver, [SharedSpan(0, 0, 2)]) == ((0, 0), (1, 1), (2, 1), (3, 1))


def test_offsets_follow_a_content_to_its_place_in_another_prompt() -> None:
    receiver = [(0, 0), (0, 4), (4, 6), (6, 8), (8, 12)]
    sharer = [(0, 10), (10, 13), (13, 14), (14, 20)]
    assert align_offsets(receiver, sharer, [SharedSpan(4, 10, 4)]) == ((2, 1), (3, 2))


def test_tokens_outside_of_shared_spans_are_nobodys() -> None:
    assert align_offsets([(0, 4), (4, 8)], [(0, 8)], [SharedSpan(0, 0, 2)]) == ()
    assert align_offsets([(0, 4)], [(0, 4)], []) == ()


def split(cuts: list[int], length: int) -> list[tuple[int, int]]:
    edges = sorted({0, length, *(cut % (length + 1) for cut in cuts)})
    return list(zip(edges, edges[1:], strict=False))


numbers = st.lists(st.integers(0, 40), max_size=12)


@given(numbers, numbers, st.integers(1, 30), st.integers(0, 9), st.integers(0, 9))
def test_every_token_of_a_shared_text_finds_the_token_of_its_last_character(
    mine: list[int], theirs: list[int], length: int, here: int, there: int
) -> None:
    receiver = [(a + here, b + here) for a, b in split(mine, length)]
    sharer = [(a + there, b + there) for a, b in split(theirs, length)]
    pairs = align_offsets(receiver, sharer, [SharedSpan(here, there, length)])
    assert [first for first, _ in pairs] == list(range(len(receiver)))
    for first, second in pairs:
        last = receiver[first][1] - 1 - here
        assert sharer[second][0] - there <= last < sharer[second][1] - there
    if mine == theirs:
        assert all(first == second for first, second in pairs)
