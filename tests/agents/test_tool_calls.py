"""From replies to calls: the forms that models write, what is shown of them, what is no call."""

from typing import Any

import pytest

from cachegraph.agents.tools.content import cut
from cachegraph.agents.tools.parse_calls import ParsedCall, ReplyTextStream, hear

ADD = ParsedCall("add", {"a": 1})


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": 1}}',
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        '{"name": "add", "parameters": {"a": 1}}',
        ' [{"name": "add", "arguments": {"a": 1}}]\n',
        '```json\n{"name": "add", "arguments": {"a": 1}}\n```',
        '{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}',
    ],
)
def test_a_call_is_heard_in_every_usual_form(text: str) -> None:
    heard = hear(text, {"add"})
    assert heard.calls == (ADD,)
    assert heard.said == ""


def test_several_calls_and_words_in_front_of_them() -> None:
    two = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>\n<tool_call>{"name": "now"}</tool_call>'
    heard = hear(f"Let me see. {two}", {"add", "now"})
    assert heard.said == "Let me see. "
    assert heard.calls == (ADD, ParsedCall("now", {}))
    assert len(hear('[{"name": "add"}, {"name": "now"}]', {"add", "now"}).calls) == 2


@pytest.mark.parametrize(
    "text",
    [
        "4",
        "",
        '{"name": "Ann", "age": 3}',
        "[1, 2]",
        '{"answer": {"name": "add"}}',
        '[{"name": "add"}, 3]',
        "{",
        "null",
    ],
)
def test_other_replies_are_no_calls(text: str) -> None:
    heard = hear(text, {"add"})
    assert (heard.said, heard.calls) == (text, ())


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("{add", "this is not a call: '{add'"),
        ('{"name": "add", "arguments": [1]}', "must be a JSON object"),
        ('{"name": "add", "arguments": "x"}', "must be a JSON object"),
        ("[" * 100_000, "this is not a call"),
    ],
)
def test_a_call_that_can_not_be_read_says_why(body: str, why: str) -> None:
    (call,) = hear(f"<tool_call>{body}</tool_call>", {"add"}).calls
    assert why in (call.problem or "")


def spoken(*rounds: str) -> tuple[list[str], str]:
    """The pieces that are handed on while these replies come character by character, and the text of all."""
    pieces: list[str] = []
    speaker = ReplyTextStream(pieces.append)
    for reply in rounds:
        for character in reply:
            speaker.push(character)
        speaker.end(hear(reply, {"add"}).said)
    return pieces, speaker.text


CALL = '<tool_call>{"name": "add"}</tool_call>'


@pytest.mark.parametrize(
    ("rounds", "text"),
    [
        (["It is 4."], "It is 4."),
        ([CALL, "It is 4."], "It is 4."),
        (['{"name": "add"}', "It is 4."], "It is 4."),
        (["Let me see." + CALL, "It is 4."], "Let me see.\n\nIt is 4."),
        (["\n" + CALL, "4"], "4"),
        (['{"answer": 4}'], '{"answer": 4}'),
        (["a < b, a <tool", "<"], "a < b, a <tool\n\n<"),
        ([""], ""),
    ],
)
def test_what_is_shown_while_it_is_written_is_the_text_without_calls(rounds: list[str], text: str) -> None:
    pieces, whole = spoken(*rounds)
    assert "".join(pieces) == whole == text


def test_words_are_shown_at_once() -> None:
    pieces: list[Any] = []
    speaker = ReplyTextStream(pieces.append)
    speaker.push("It is")
    assert pieces == ["It is"]


def test_a_long_result_is_cut_between_characters_and_says_so() -> None:
    assert cut("äöü", 6) == "äöü"
    assert cut("äöü", 5) == "äö\n[cut: 5 of 6 bytes]"
