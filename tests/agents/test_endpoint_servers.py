"""What servers that call themselves OpenAI-compatible send, each a row; all mean `Hello.` unless the row says more.

The answers are written after the servers' documentation, source and bug reports. A real HTTP server sends them.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

import pytest
from chat_server import DONE, Answer, Server, event, status, stream
from endpoint_agent import KEY, say

pytestmark = pytest.mark.anyio


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def delta(finish: str | None = None, **parts: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": parts, "finish_reason": finish}]}


def whole(finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}]}


def body(data: bytes, kind: str | None = "text/event-stream", code: int = 200, **headers: str) -> Answer:
    """One answer of these bytes, with this content type."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in {"content-type": kind, **headers}.items():
            if value is not None:
                request.send_header(name.replace("_", "-"), value)
        request.send_header("content-length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    return answer


HELLO, STOP = event(delta(content="Hello.")), event(delta("stop"))
PLAIN = HELLO + STOP + DONE


def as_json(value: Any, kind: str | None = "application/json") -> Answer:
    return body(json.dumps(value).encode(), kind)


class Row(NamedTuple):
    """An answer, and what is made of it."""

    sends: Answer
    text: str = "Hello."
    finish: str | None = "stop"
    tokens: tuple[int, int] = (0, 0)  # read, written


USAGE = {"prompt_tokens": 12, "completion_tokens": 3}
ROWS = {
    "OpenAI: a role first, the usage last": Row(
        stream(
            event(delta(role="assistant", content="", refusal=None)),
            HELLO,
            STOP,
            event({"choices": [], "usage": {**USAGE, "completion_tokens_details": {"reasoning_tokens": 0}}}),
            DONE,
        ),
        tokens=(12, 3),
    ),
    "OpenAI: obfuscation beside the delta": Row(
        stream(event({**delta(content="Hello."), "obfuscation": "x9"}), STOP, DONE)
    ),
    "Azure: the prompt's filter results come first, without a choice": Row(
        stream(event({"choices": [], "prompt_filter_results": [{"prompt_index": 0}], "id": "", "model": ""}), PLAIN)
    ),
    "Azure: a reply that is filtered in the middle is kept": Row(
        stream(
            HELLO,
            event(
                {
                    "choices": [
                        {"index": 0, "delta": {}, "finish_reason": "content_filter", "content_filter_offsets": {}}
                    ]
                }
            ),
            DONE,
        ),
        finish="content_filter",
    ),
    "vLLM: usage in every event, null first": Row(
        stream(
            event({**delta(content="Hel"), "usage": None}),
            event({**delta(content="lo."), "usage": {"prompt_tokens": 12, "completion_tokens": 2}}),
            event({**delta("stop", content=""), "usage": USAGE, "stop_reason": 2}),
            DONE,
        ),
        tokens=(12, 3),
    ),
    "vLLM: reasoning in a field of its own": Row(
        stream(event(delta(reasoning_content="Hm.", content=None)), event(delta(reasoning="Hm.")), PLAIN)
    ),
    "SGLang: null where others leave out": Row(
        stream(
            event(delta(role="assistant", content=None, reasoning_content=None, tool_calls=None)),
            event({**delta(content="Hello."), "usage": None}),
            event({"choices": [{"index": 0, "delta": {"content": None}, "finish_reason": "stop", "matched_stop": 2}]}),
            DONE,
        )
    ),
    "llama.cpp: choices null in the event with the timings": Row(
        stream(HELLO, STOP, event({"choices": None, "timings": {"prompt_ms": 1}, "usage": USAGE}), DONE), tokens=(12, 3)
    ),
    "llama.cpp: cut at its limit": Row(stream(HELLO, event(delta("length")), DONE), finish="length"),
    "Ollama: thinking under `reasoning`, an empty content beside it": Row(
        stream(event(delta(role="assistant", content="", reasoning="Hm.")), PLAIN)
    ),
    "Ollama: no [DONE]": Row(stream(HELLO, STOP)),
    "LM Studio: an event name before each event": Row(
        stream(*(b"event: message\n" + each for each in (HELLO, STOP)), DONE)
    ),
    "LM Studio: a reply as one JSON object under the stream's content type": Row(
        as_json(whole(content="Hello."), "text/event-stream")
    ),
    "Mistral: content as parts, thinking among them": Row(
        stream(
            event(delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}])),
            event(delta(content=[{"type": "text", "text": "Hel"}, {"type": "reference", "reference_ids": [1]}])),
            event(delta("stop", content=[{"type": "text", "text": "lo."}])),
            DONE,
        )
    ),
    "Mistral: `model_length`": Row(stream(HELLO, event(delta("model_length")), DONE), finish="length"),
    "Gemini: the reason in the event with the text, in capitals": Row(
        stream(event({**delta("STOP", content="Hello.", role="assistant"), "usage": USAGE}), DONE), tokens=(12, 3)
    ),
    "Gemini: `MAX_TOKENS`": Row(stream(event(delta("MAX_TOKENS", content="Hello."))), finish="length"),
    "Anthropic: `end_turn`, pings": Row(
        stream(b"event: ping\n" + event({"type": "ping"}), HELLO, event(delta("end_turn")), DONE)
    ),
    "OpenRouter: comments keep the connection open": Row(
        stream(b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n", PLAIN)
    ),
    "OpenRouter: reasoning details, another native reason": Row(
        stream(
            event(delta(content="", reasoning="Hm.", reasoning_details=[{"type": "reasoning.text", "text": "Hm."}])),
            HELLO,
            event({"choices": [{"delta": {"content": ""}, "finish_reason": "stop", "native_finish_reason": "STOP"}]}),
            DONE,
        )
    ),
    "LMDeploy: usage null, then numbers as texts": Row(
        stream(
            event({**delta(content="Hello."), "usage": None}),
            event({**delta("stop"), "usage": {"prompt_tokens": "12", "completion_tokens": 3.0}}),
            DONE,
        ),
        tokens=(12, 3),
    ),
    "DeepSeek: data without a space": Row(body(PLAIN.replace(b"data: ", b"data:"))),
    "Moonshot: usage inside the choice": Row(
        stream(HELLO, event({"choices": [{"delta": {}, "finish_reason": "stop", "usage": USAGE}]}), DONE),
        tokens=(12, 3),
    ),
    "gateways: a message where a delta belongs": Row(stream(event(whole(content="Hello.")), DONE)),
    "gateways: the last event again as a whole message without text": Row(
        stream(HELLO, event({**whole(content=None), "usage": USAGE}), DONE), tokens=(12, 3)
    ),
    "gateways: text as parts of plain strings": Row(stream(event(delta(content=["Hel", "lo."])), STOP, DONE)),
    "gateways: a reason that nobody knows": Row(stream(HELLO, event(delta("eos_of_the_day")), DONE), finish=None),
    "gateways: no reason at all": Row(stream(HELLO, DONE), finish=None),
    "gateways: the end of the stream twice": Row(stream(PLAIN, DONE)),
    "gateways: an answer that does not stream": Row(
        as_json({**whole(content="Hello."), "usage": USAGE}), tokens=(12, 3)
    ),
    "gateways: its content as parts": Row(as_json(whole(content=[{"type": "text", "text": "Hello."}]))),
    "gateways: JSON by lines": Row(
        body(
            b"\n".join(json.dumps(each).encode() for each in (delta(content="Hello."), delta("stop"))),
            "application/x-ndjson",
        )
    ),
    "gateways: an answer in capitals": Row(body(PLAIN, "Text/Event-Stream; Charset=UTF-8")),
    "gateways: events under text/plain": Row(body(PLAIN, "text/plain; charset=utf-8")),
    "gateways: events under application/json": Row(body(PLAIN, "application/json")),
    "gateways: no content type": Row(body(PLAIN, None)),
    "gateways: JSON under text/plain": Row(as_json(whole(content="Hello."), "text/plain")),
    "gateways: JSON behind a byte order mark": Row(
        body(b"\xef\xbb\xbf" + json.dumps(whole(content="Hello.")).encode(), "application/json")
    ),
    "gateways: another status that means well": Row(body(PLAIN, code=201)),
    "proxies: CRLF": Row(body(PLAIN.replace(b"\n", b"\r\n"))),
    "proxies: CR": Row(body(PLAIN.replace(b"\n", b"\r"))),
    "proxies: a byte order mark": Row(body(b"\xef\xbb\xbf" + PLAIN)),
    "proxies: blank lines first": Row(body(b"\n\n\r\n" + PLAIN)),
    "proxies: id and retry lines": Row(body(b"id: 1\nretry: 3000\n" + PLAIN)),
    "proxies: several lines of data in one event": Row(
        body(b'data: {"choices": [{"delta": {"content": "Hello."},\ndata:  "finish_reason": "stop"}]}\n\n' + DONE)
    ),
    "proxies: one byte at a time": Row(stream(*(bytes([each]) for each in PLAIN))),
    "proxies: gzip that nobody asked for": Row(body(gzip.compress(PLAIN), content_encoding="gzip")),
    "proxies: gzip in several members": Row(
        body(gzip.compress(HELLO) + gzip.compress(STOP + DONE), content_encoding="GZIP")
    ),
    "proxies: deflate": Row(body(zlib.compress(PLAIN), content_encoding="deflate")),
    "proxies: a whole reply in one event": Row(
        stream(event(delta(content="x" * 1_200_000)), STOP, DONE), text="x" * 1_200_000
    ),
    "characters: an emoji cut by the network": Row(
        stream(b'data: {"choices":[{"delta":{"content":"\xf0\x9f', b'\x98\x80"}}]}\n\n', STOP, DONE), text="😀"
    ),
    "characters: an emoji whose halves come in two events": Row(
        stream(event(delta(content="Hi \ud83d")), event(delta(content="\ude00!")), STOP, DONE), text="Hi 😀!"
    ),
    "characters: a half that stays alone": Row(
        stream(event(delta(content="Hi \ud83d there")), STOP, DONE), text="Hi \ufffd there"
    ),
    "characters: a half at the end": Row(stream(event(delta(content="Hi \ud83d")), STOP, DONE), text="Hi \ufffd"),
    "characters: two first halves": Row(
        stream(event(delta(content="\ud83d")), event(delta(content="\ud83d\ude00")), STOP, DONE), text="\ufffd😀"
    ),
    "characters: bytes that are no UTF-8": Row(
        body(b'data: {"choices":[{"delta":{"content":"caf\xe9"}}]}\n\n' + STOP + DONE), text="caf\ufffd"
    ),
}


@pytest.mark.parametrize("name", ROWS)
async def test_a_reply_is_understood_as_this_server_sends_it(server: Server, name: str) -> None:
    row = ROWS[name]
    server.script = [row.sends]
    pieces: list[str] = []
    reply = await say(server, on_text=pieces.append)
    assert reply.payload.text == "".join(pieces) == row.text
    assert reply.finish_reason == row.finish
    assert (reply.tokens.prefilled, reply.tokens.generated) == row.tokens
    assert len(server.requests) == 1
    for text in pieces:
        text.encode()


BOOM = {"message": "boom", "type": "server_error", "code": None}
TROUBLES: dict[str, tuple[Answer, str]] = {
    "OpenAI: an error in the stream": (stream(HELLO, event({"error": BOOM}), DONE), "reported an error: boom"),
    "OpenAI: a refusal": (
        stream(event(delta(refusal="I can't ")), event(delta("stop", refusal="help.")), DONE),
        "refused to answer: I can't help.",
    ),
    "OpenAI: a refusal as a part": (
        as_json(whole(content=[{"type": "refusal", "refusal": "No."}])),
        "refused to answer: No.",
    ),
    "Azure: a reply that is filtered away": (
        stream(event(delta(role="assistant", content="")), event(delta("content_filter")), DONE),
        "filtered the whole reply (finish_reason 'content_filter')",
    ),
    "Azure: a prompt that is filtered": (
        body(
            json.dumps({"error": {"code": "content_filter", "message": "filtered"}}).encode(), "application/json", 400
        ),
        "answered 400: filtered",
    ),
    "vLLM: an error object": (stream(event({"object": "error", "message": "boom", "code": 400}), DONE), "error: boom"),
    "vLLM: an aborted request": (stream(HELLO, event(delta("abort")), DONE), "stopped with an error"),
    "SGLang: an error object as the whole answer": (as_json({"object": "error", "message": "boom"}), "an error: boom"),
    "SGLang: an error without `data:` in the stream": (
        stream(HELLO, b'{"error": {"message": "boom"}}\n\n'),
        "reported an error: boom",
    ),
    "llama.cpp: a field `error`": (
        stream(HELLO, b'error: {"code": 400, "message": "boom"}\n\n'),
        "reported an error: boom",
    ),
    "Ollama: an error that is a text": (stream(event({"error": "boom"})), "reported an error: boom"),
    "LM Studio: an event named error": (
        stream(b"event: error\n" + event({"message": "boom"})),
        "reported an error: boom",
    ),
    "LM Studio: an event named error that is not JSON": (stream(b"event: error\ndata: boom\n\n"), "an error: boom"),
    "Mistral: what is wrong, in FastAPI's words": (
        body(json.dumps({"detail": [{"loc": ["body", "x"], "msg": "boom"}]}).encode(), "application/json", 422),
        "answered 422: boom",
    ),
    "Gemini: an error in a list": (
        body(json.dumps([{"error": {"code": 400, "message": "boom"}}]).encode(), "application/json", 400),
        "answered 400: boom",
    ),
    "Gemini: an error in a list, with status 200": (as_json([{"error": {"message": "boom"}}]), "an error: boom"),
    "Gemini: a reply that is filtered away": (stream(event(delta("SAFETY")), DONE), "filtered the whole reply"),
    "Anthropic: an error with a type": (
        stream(b"event: error\n" + event({"type": "error", "error": {"type": "x", "message": "boom"}})),
        "reported an error: boom",
    ),
    "OpenRouter: an error in the choice": (
        stream(HELLO, event({"choices": [{"delta": {}, "finish_reason": "error", "error": {"message": "boom"}}]})),
        "reported an error: boom",
    ),
    "OpenRouter: an error with status 200": (
        as_json({"error": {"message": "no credit", "code": 402}, "user_id": "u"}),
        "reported an error: no credit",
    ),
    "LMDeploy: only reasoning, until the limit": (
        stream(event(delta(reasoning_content="Let me think")), event(delta("length")), DONE),
        "spent all 128 tokens on reasoning (finish_reason 'length') and wrote no reply; raise max_new_tokens",
    ),
    "OpenAI: only hidden reasoning, until the limit": (
        as_json({**whole("length", content=""), "usage": {"completion_tokens_details": {"reasoning_tokens": 128}}}),
        "spent all 128 tokens on reasoning",
    ),
    "Mistral: only thinking parts": (
        stream(event(delta("stop", content=[{"type": "thinking", "thinking": "Hm."}])), DONE),
        "sent reasoning and no reply",
    ),
    "any: nothing until the limit": (stream(event(delta("length")), DONE), "reached 128 tokens"),
    "any: nothing": (stream(STOP, DONE), "sent an empty reply (finish_reason 'stop')"),
    "any: nothing but blanks": (stream(event(delta(content=" \n")), STOP, DONE), "sent an empty reply"),
    "any: nothing and no reason": (stream(DONE), "sent an empty reply (finish_reason 'missing')"),
    "any: null where a reply belongs": (as_json(whole(content=None)), "sent an empty reply"),
    "any: a call of a tool that the agent has not": (
        stream(
            event(delta(tool_calls=[{"function": {"name": "f", "arguments": "{}"}}])), event(delta("tool_calls")), DONE
        ),
        "called a tool instead of answering",
    ),
    "any: JSON of something else": (as_json({"id": 1}), "answered without a completion"),
    "any: an empty body": (body(b""), "ended its reply in the middle"),
    "any: cut in the middle of an event": (stream(HELLO, b'data: {"choices": [{"del'), "ended its reply in the middle"),
    "any: cut before its end": (stream(HELLO), "ended its reply in the middle"),
    "proxies: a page": (
        body(b"<!DOCTYPE html><html><head><title>Log in &amp; go</title></head></html>", "text/html; charset=utf-8"),
        "answered with 'text/html; charset=utf-8' where a chat completion was expected: an HTML page, 'Log in & go'",
    ),
    "proxies: a page as an error": (
        body(b"<html><body><h1>403 Forbidden</h1></body></html>", "text/html", 403),
        "answered 403: an HTML page, '403 Forbidden'; check the key",
    ),
    "proxies: words": (body(b"upstream connect error", "text/plain"), "expected: upstream connect error"),
    "proxies: a compression that nobody asked for": (
        body(b"xx", content_encoding="br"),
        "compressed its answer as 'br'",
    ),
    "proxies: a broken compression": (body(b"not gzip", content_encoding="gzip"), "whose compression is broken"),
    "proxies: a bomb": (
        body(gzip.compress(b"data: " + bytes(80_000_000)), content_encoding="gzip"),
        "sent an event that does not end",
    ),
    "proxies: a bomb of JSON": (
        body(gzip.compress(b"{" + b" " * 80_000_000), "application/json", content_encoding="gzip"),
        "sent an event that does not end",
    ),
    "proxies: a redirect": (status(302, location="https://example.org/"), "answered with a redirect (302)"),
}


@pytest.mark.parametrize("name", TROUBLES)
async def test_what_is_no_reply_is_an_error_that_says_which(server: Server, name: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("CACHEGRAPH_KEY", KEY)
    answer, said = TROUBLES[name]
    server.script = [answer]
    with pytest.raises(Exception) as caught:  # noqa: PT011
        await say(server, key="CACHEGRAPH_KEY", retries=0)
    assert type(caught.value).__name__ == "ModelError"
    assert said in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(server.requests) == 1


def test_the_tables_are_as_long_as_the_docs_say() -> None:
    print(f"{len(ROWS)} answers, {len(TROUBLES)} troubles")  # docs/guides/endpoints.md
    kinds = {name.partition(":")[0] for name in (*ROWS, *TROUBLES)}
    assert len(kinds - {"any", "gateways", "proxies", "characters"}) >= 12
