"""Events come out the same, however the network cuts the bytes and whatever ends a line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachegraph.agents.endpoint.sse_decoder import MAX_EVENT, EventDecoder, EventTooLong, ServerSentEvent

TEXTS = st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), max_size=5)


def decode(stream: bytes, sizes: list[int]) -> list[ServerSentEvent]:
    decoder, got = EventDecoder(), []
    for size in sizes:
        got += decoder.feed(stream[:size])
        stream = stream[size:]
    return got + decoder.feed(stream) + decoder.close()


@settings(deadline=None)
@given(TEXTS, st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["", "\ufeff"]), st.lists(st.integers(0, 9)))
def test_cuts_and_line_ends_do_not_matter(texts: list[str], end: str, mark: str, sizes: list[int]) -> None:
    stream = mark + "".join(f": note{end}event: x{end}data: {text}{end}{end}" for text in texts)
    assert decode(stream.encode(), sizes) == [ServerSentEvent(text, "x") for text in texts]


def test_several_lines_of_data_are_one_event() -> None:
    assert EventDecoder().feed(b"data: a\ndata:b\n\n") == [ServerSentEvent("a\nb")]


def test_a_last_event_needs_no_empty_line() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\n") == []
    assert decoder.close() == [ServerSentEvent("a")]
    assert decoder.feed(b"data: b") == []
    assert decoder.close() == [ServerSentEvent("b", cut=True)]


def test_a_name_holds_for_one_event() -> None:
    assert EventDecoder().feed(b"event: a\ndata: 1\n\ndata: 2\n\nevent: b\n\ndata: 3\n\n") == [
        ServerSentEvent("1", "a"),
        ServerSentEvent("2"),
        ServerSentEvent("3"),
    ]


def test_errors_beside_the_standard_become_events() -> None:
    assert EventDecoder().feed(b'data: 1\nerror: {"a": 1}\n\n{"error": 2}\n') == [
        ServerSentEvent("1"),
        ServerSentEvent('{"a": 1}', "error"),
        ServerSentEvent('{"error": 2}'),
    ]


@pytest.mark.parametrize("part", [b"x" * (1 << 20), b"data: " + b"x" * (1 << 20) + b"\n"])
def test_an_event_that_does_not_end_is_refused(part: bytes) -> None:
    decoder = EventDecoder()
    for _ in range(MAX_EVENT // (1 << 20) - 1):
        assert decoder.feed(part) == []
    with pytest.raises(EventTooLong):
        decoder.feed(part + part)
