"""How receiver and sharers read one prompt: which tokens, at which positions, and which stand for each other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHATML, save_tokenizer
from transformers import AutoTokenizer

from cachegraph.channels.cache.align import Aligner, TokenizedChat
from cachegraph.channels.cache.shared_prompt import (
    SharedPrompt,
    SharerPrompt,
    make_room,
    pair_tokens,
    share_by_ids,
    share_by_offsets,
    share_by_sections,
)
from cachegraph.engine.text.chat import render_chat
from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import ChannelError

LONG = (
    "{% for m in messages %}<start>of a turn by the {{ m.role }} who says\n{{ m.content | trim }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<start>of a turn by the model{% endif %}"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer, Tokenizer]:
    """One receiver and two sharers: another vocabulary, and another chat template too, longer than the receiver's."""
    out = []
    for vocabulary, template in ((300, CHATML), (270, CHATML), (310, LONG)):
        folder = tmp_path_factory.mktemp("tokenizer")
        save_tokenizer(folder, vocabulary=vocabulary, template=template)
        out.append(Tokenizer(AutoTokenizer.from_pretrained(folder)))
    return out[0], out[1], out[2]


def read(tokenizer: Tokenizer, *contents: str) -> TokenizedChat:
    chat = render_chat(tokenizer.chat, [{"role": "user", "content": content} for content in contents])
    encoded = tokenizer.encode(chat.text, special=False)
    return TokenizedChat(encoded.ids, encoded.offsets, [(span.start, span.end) for span in chat.contents])


def check(reading: SharedPrompt) -> None:
    """What holds of every reading."""
    at = 0
    for stretch in reading.stretches:
        assert stretch.start == at < stretch.end
        at = stretch.end
        for j, (here, there) in stretch.pairs.items():
            assert len(here) == len(there) > 0
            assert 0 <= int(here.min()) <= int(here.max()) < stretch.end - stretch.start
            assert len(set(here.tolist())) == len(here)
            assert 0 <= int(there.min()) <= int(there.max()) < len(reading.sharers[j].ids)
    assert at < len(reading.ids)  # decoding starts from the last token, which nobody corrects
    if reading.stretches:
        assert reading.stretches[-1].pairs
    if reading.positions is not None:
        for positions in (reading.positions, *(each.positions for each in reading.sharers)):
            assert positions is not None
            assert bool((positions.diff() > 0).all())


def stand_ins(reading: SharedPrompt, j: int) -> list[tuple[int, int]]:
    """(receiver token, sharer token) of all pairs."""
    return [
        (reading.ids[stretch.start + here], reading.sharers[j].ids[there])
        for stretch in reading.stretches
        if j in stretch.pairs
        for here, there in zip(*(x.tolist() for x in stretch.pairs[j]), strict=True)
    ]


TEXTS = st.one_of(st.text("the sky is blue? 🙂中\n", min_size=1, max_size=20), st.text(min_size=1, max_size=15))


@settings(deadline=None, max_examples=80)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from(["first", "longest"]))
def test_aligned_chats_share_their_messages_position_by_position(models: Any, texts: list[str], strategy: Any) -> None:
    receiver, *others = models
    aligners = [Aligner(receiver.raw, other.raw, strategy) for other in others]
    mine = read(receiver, *texts)
    reading = share_by_sections(aligners, mine, [read(other, *texts) for other in others])
    check(reading)
    assert list(reading.ids) == list(mine.ids)
    assert reading.positions is not None
    for j, aligner in enumerate(aligners):
        positions = reading.sharers[j].positions
        assert positions is not None
        for stretch in reading.stretches:
            if stretch.pairs:
                here, there = stretch.pairs[j]
                assert torch.equal(reading.positions[stretch.start + here], positions[there])
        assert all(aligner.token(ours) == theirs for ours, theirs in stand_ins(reading, j))


@settings(deadline=None, max_examples=80)
@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_by_offsets_everybody_reads_natively(models: Any, texts: list[str]) -> None:
    receiver, *others = models
    mine, theirs = read(receiver, *texts), [read(other, *texts) for other in others]
    reading = share_by_offsets(mine, theirs)
    check(reading)
    assert list(reading.ids) == list(mine.ids)
    for own, sharer in zip(theirs, reading.sharers, strict=True):
        assert list(own.ids[: len(sharer.ids)]) == list(sharer.ids)


def test_sharers_read_no_further_than_somebody_looks(models: Any) -> None:
    """Not what their own templates put behind the last message."""
    receiver, _, other = models
    full = read(other, "the sky")
    for reading in (
        share_by_sections([Aligner(receiver.raw, other.raw)], read(receiver, "the sky"), [full]),
        share_by_offsets(read(receiver, "the sky"), [full]),
    ):
        assert len(reading.sharers[0].ids) < len(full.ids)
        last = reading.stretches[-1].pairs[0].sharer
        assert int(last.max()) == len(reading.sharers[0].ids) - 1


@pytest.mark.parametrize("count", [0, 1])
def test_a_prompt_of_one_token_has_nothing_to_share(count: int) -> None:
    reading = share_by_ids([5] * count, 2)
    assert (reading.fused, list(reading.stretches)) == (0, [])


def test_one_tokenizer_shares_all_but_the_last_token() -> None:
    reading = share_by_ids([5, 6, 7], 2)
    check(reading)
    assert reading.fused == 2
    assert [each.ids for each in reading.sharers] == [[5, 6], [5, 6]]


def test_a_message_that_ends_the_prompt_keeps_its_last_token_apart(models: Any) -> None:
    """Where the template writes nothing behind the message."""
    receiver, other, _ = models
    ids, offsets = receiver.encode("the sky", special=False)
    mine = TokenizedChat(ids, offsets, [(0, 7)])
    other_ids, other_offsets = other.encode("the sky", special=False)
    theirs = TokenizedChat(other_ids, other_offsets, [(0, 7)])
    for reading in (
        share_by_sections([Aligner(receiver.raw, other.raw)], mine, [theirs]),
        share_by_offsets(mine, [theirs]),
    ):
        check(reading)
        assert reading.fused == len(mine.ids) - 1


@given(
    st.integers(2, 20),
    st.lists(st.dictionaries(st.integers(0, 19), st.integers(0, 9), max_size=20), min_size=1, max_size=3),
)
def test_any_pairs_are_kept_but_the_last_tokens(length: int, pairs: list[dict[int, int]]) -> None:
    """Runs of corrected tokens and runs between them; each sharer's pairs where they were."""
    wanted = [{here: there for here, there in each.items() if here < length - 1} for each in pairs]
    reading = pair_tokens(
        list(range(length)), [SharerPrompt(list(range(10)))] * len(pairs), [each.items() for each in wanted]
    )
    check(reading)
    assert [dict(stand_ins(reading, j)) for j in range(len(pairs))] == wanted
    assert reading.fused == len({here for each in wanted for here in each})


def test_a_chat_without_messages_is_refused(models: Any, tmp_path: Path) -> None:
    receiver, other, _ = models
    with pytest.raises(ChannelError, match="no message"):
        share_by_sections(
            [Aligner(receiver.raw, other.raw)], TokenizedChat([1], [(0, 1)], []), [TokenizedChat([1], [(0, 1)], [])]
        )
    with pytest.raises(ChannelError, match="different numbers of contents"):
        share_by_offsets(TokenizedChat([1], [(0, 1)], [(0, 1)]), [TokenizedChat([1], [(0, 1)], [])])


@settings(max_examples=60)
@given(st.data())
def test_room_for_grafts_moves_what_is_behind_and_keeps_all_pairs(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    tokens = st.integers(0, count - 1)
    pairs = data.draw(st.lists(st.tuples(tokens, st.integers(0, 8)), unique_by=lambda pair: pair[0], max_size=count))
    grafts = sorted(data.draw(st.lists(st.tuples(st.integers(0, count), st.integers(1, 4)), max_size=3)))
    plain = pair_tokens(list(range(count)), [SharerPrompt(list(range(9)))], [pairs])
    plain = SharedPrompt(plain.ids, torch.arange(count) * 2, plain.sharers, plain.stretches)
    room = make_room(plain, grafts)

    def flat(reading: SharedPrompt) -> set[tuple[int, int]]:
        return {
            (at.start + int(here), int(there))
            for at in reading.stretches
            for each in at.pairs.values()
            for here, there in zip(*each, strict=True)
        }

    assert flat(room) == flat(plain)
    ends = [0, *(at.end for at in room.stretches)]
    assert [at.start for at in room.stretches] == ends[:-1]
    assert {token for token, _ in grafts} <= set(ends)
    assert room.positions is not None
    assert room.positions.tolist() == [
        2 * token + sum(many for before, many in grafts if before <= token) for token in range(count)
    ]
