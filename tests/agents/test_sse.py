"""Events come out the same, however the network cuts the bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachegraph.agents.sse import EventDecoder, EventTooLong

TEXTS = st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), max_size=5)


@given(TEXTS, st.sampled_from(["\n", "\r\n"]), st.data())
def test_cuts_do_not_matter(texts: list[str], end: str, data: st.DataObject) -> None:
    stream = "".join(f": note{end}event: x{end}data: {text}{end}{end}" for text in texts).encode()
    decoder, got, rest = EventDecoder(), [], stream
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        got += decoder.feed(rest[:size])
        rest = rest[size:]
    assert got + decoder.close() == texts


def test_several_lines_of_data_are_one_event() -> None:
    assert EventDecoder().feed(b"data: a\ndata:b\n\n") == ["a\nb"]


def test_a_last_event_needs_no_empty_line() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: a") == []
    assert decoder.close() == ["a"]


@pytest.mark.parametrize("part", [b"x" * 70_000, b"data: " + b"x" * 70_000 + b"\n"])
def test_an_event_that_does_not_end_is_refused(part: bytes) -> None:
    decoder = EventDecoder()
    assert [decoder.feed(part) for _ in range(14)] == [[]] * 14
    with pytest.raises(EventTooLong):
        decoder.feed(part)
