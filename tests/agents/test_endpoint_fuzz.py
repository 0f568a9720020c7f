"""Answers of servers, cut, mixed and damaged at random: a reply, or an error in our words. Counts are printed."""

import json
import random
from time import monotonic
from typing import Any

import pytest
from fuzz_counts import cases, report, seconds

from cachegraph.agents.endpoint.completion import Completion, Reported, Unreadable
from cachegraph.agents.endpoint.error_text import page_title, server_message
from cachegraph.agents.endpoint.response_decoder import AnswerDecoder, NotAnAnswer
from cachegraph.agents.endpoint.sse_decoder import EventTooLong
from cachegraph.agents.endpoint.tool_calls import ToolCallPieces

SECONDS = seconds(3.0)  # of each test here
LEAVES: list[Any] = [
    *("", "Hello", "\ud83d", "\ude00", "\x00", "\x1b[31m", "stop", "length", "[DONE]", "c1", "add", '{"a": 1}', '{"a"'),
    *(None, True, False, 0, 1, -1, 1.5, 1e308, 10**30, [], {}, "NaN", "0", "9" * 5000),
]
KEYS = (
    *("choices", "delta", "message", "content", "tool_calls", "function", "name", "arguments", "id", "index", "usage"),
    *("error", "object", "type", "text", "thinking", "reasoning_content", "reasoning_details", "refusal", "detail"),
    *("finish_reason", "prompt_tokens", "completion_tokens", "completion_tokens_details", "function_call", "code"),
)


def value(rng: random.Random, depth: int = 4) -> Any:
    """A JSON value with the keys that answers have, at places where they may not belong."""
    kind = rng.random()
    if depth == 0 or kind < 0.35:
        return rng.choice(LEAVES)
    if kind < 0.55:
        return [value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {rng.choice(KEYS): value(rng, depth - 1) for _ in range(rng.randint(0, 4))}


def likely(rng: random.Random) -> Any:
    """An event as servers send them, one place of it replaced."""
    call = {"index": rng.choice([0, 1, None, "0"]), "id": rng.choice(["c1", "", None]), "function": {"arguments": "{}"}}
    delta = {"content": rng.choice(["Hi", None, [{"type": "text", "text": "Hi"}]]), "tool_calls": [call]}
    said: Any = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}], "usage": {"prompt_tokens": 3}}
    place = said
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else list(range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            place[key] = value(rng, 2)
            return said
        place = place[key]


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    """The bytes in pieces of random sizes."""
    places = sorted(rng.sample(range(len(data) + 1), min(len(data) + 1, rng.randint(0, 12))))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def check_report(report: Reported) -> None:
    said = json.dumps(report.error, ensure_ascii=False)
    assert isinstance(page_title(server_message(said) or said), str)
    assert report.code is None or 100 <= report.code <= 999


def understood(pieces: list[bytes]) -> Completion | None:
    """What a client makes of an answer; None where it reports an error. Any other exception is a bug."""
    decoder, heard, told = AnswerDecoder(), Completion(calls=ToolCallPieces(["add"])), ""
    try:
        for piece in pieces:
            for event in decoder.feed(piece):
                told += heard.add(event)
        for event in decoder.close():
            told += heard.add(event)
    except (EventTooLong, NotAnAnswer, Unreadable):
        return None
    except Reported as report:
        check_report(report)
        return None
    told += heard.close()
    assert told == heard.text
    heard.text.encode()
    assert heard.prompt_tokens >= 0
    for call in heard.calls.calls:
        assert isinstance(json.loads(call.arguments_text), dict)
        assert call.call.problem is None or call.arguments_text == "{}"
    return heard


def stream_of(rng: random.Random) -> bytes:
    """Events, most of them well formed, with any line end."""
    end = rng.choice([b"\n", b"\r\n", b"\r"])
    out = rng.choice([b"", b"", b"\xef\xbb\xbf", b"\n"])
    for _ in range(rng.randint(1, 6)):
        said = likely(rng) if rng.random() < 0.8 else value(rng)
        data = rng.choice([json.dumps(said).encode(), json.dumps(said, ensure_ascii=False).encode("utf-8", "replace")])
        head = rng.choice(
            [b"data: ", b"data:", b": x" + end + b"data: ", b"event: error" + end + b"data: ", b"error: "]
        )
        out += head + data + end + end
    return out + rng.choice([b"", b"data: [DONE]" + end + end, b"data: [DONE]"])


def test_any_stream_is_a_reply_or_an_error_in_our_words() -> None:
    rng, end, count, replies = random.Random(1), monotonic() + SECONDS, 0, 0
    while monotonic() < end and count < cases(4000):
        count += 1
        replies += understood(cut(rng, stream_of(rng))) is not None
    report("endpoint streams, strange", {"replies": replies, "errors in our words": count - replies})
    assert replies > count // 50


def test_any_bytes_are_a_reply_or_an_error_in_our_words() -> None:
    rng, end, count, replies = random.Random(2), monotonic() + SECONDS, 0, 0
    while monotonic() < end and count < cases(6000):
        count += 1
        data = bytearray(stream_of(rng))
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(len(data))
            data[place : place + rng.randint(0, 4)] = rng.randbytes(rng.randint(0, 4))
            data = data or bytearray(b"x")
        replies += understood(cut(rng, bytes(data))) is not None
    report("endpoint streams, damaged", {"replies": replies, "errors in our words": count - replies})


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_where_the_network_cuts_does_not_matter(end: bytes) -> None:
    rng, stop, count = random.Random(3), monotonic() + SECONDS / 3, 0
    words = ["Half ", "😀", "\ud83d", "\ude00", "é", "\n", "data: x", "\ufeff"]
    while monotonic() < stop and count < cases(1500):
        count += 1
        said = [rng.choice(words) for _ in range(rng.randint(1, 8))]
        ascii_only = rng.random() < 0.5
        events = [json.dumps({"choices": [{"delta": {"content": each}}]}) for each in said]
        if not ascii_only:
            texts = [each.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for each in said]
            events = [json.dumps({"choices": [{"delta": {"content": each}}]}, ensure_ascii=False) for each in texts]
        data = b"".join(b"data: " + each.encode() + end + end for each in [*events, "[DONE]"])
        wanted = "".join(said if ascii_only else texts)
        wanted = wanted.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        heard = understood(cut(rng, data))
        assert heard is not None
        assert heard.text == wanted
        assert heard.ended
    report("endpoint streams, cut", {"read as one piece": count})
