"""Tool calls as servers send them: rows of the same few calls, each sent back so that any server can parse it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chat_server import DONE, Answer, Server, event, piece, stream
from endpoint_agent import with_tools

from cachegraph.agents.endpoint.tool_calls import ToolCallPieces
from cachegraph.errors import ModelError, RunError

pytestmark = pytest.mark.anyio

A, B = '{"a": 2, "b": 3}', '{"a": 5, "b": 7}'
Call = tuple[str, dict[str, int]]
ADD_A: Call = ("add", {"a": 2, "b": 3})
ADD_B: Call = ("add", {"a": 5, "b": 7})
NOW: Call = ("now", {})


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def call(arguments: Any = ..., name: str | None = None, call_id: Any = ..., index: Any = ..., **more: Any) -> Any:
    """One piece of a call, without what is not given."""
    function = {} if name is None else {"name": name}
    function |= {} if arguments is ... else {"arguments": arguments}
    out = {"function": function, **more}
    out |= {} if call_id is ... else {"id": call_id}
    return out | ({} if index is ... else {"index": index})


def deltas(*groups: Any, finish: str | None = "tool_calls") -> Answer:
    parts = [event({"choices": [{"delta": {"tool_calls": group}}]}) for group in groups]
    return stream(*parts, event({"choices": [{"delta": {}, "finish_reason": finish}]}), DONE)


def message(*calls: Any) -> Answer:
    said = {"choices": [{"message": {"content": None, "tool_calls": list(calls)}, "finish_reason": "tool_calls"}]}
    return stream(json.dumps(said).encode())


TWO = [ADD_A, ADD_B]
ROWS: dict[str, tuple[Answer, list[tuple[str, dict[str, Any]]]]] = {
    "OpenAI: arguments in pieces, calls one after the other": (
        deltas(
            [call("", "add", "c1", 0)],
            [call(A[:5], index=0)],
            [call(A[5:], index=0)],
            [call("", "add", "c2", 1)],
            [call(B[:5], index=1)],
            [call(B[5:], index=1)],
        ),
        TWO,
    ),
    "OpenAI: pieces of two calls in turn": (
        deltas([call("", "add", "c1", 0), call("", "add", "c2", 1)], [call(A, index=0), call(B, index=1)]),
        TWO,
    ),
    "vLLM: id and name in every piece": (
        deltas([call(A[:5], "add", "c1", 0)], [call(A[5:], "add", "c1", 0)], [call(B, "add", "c2", 1)]),
        TWO,
    ),
    "vLLM: the id as null after the first piece": (
        deltas([call("", "add", "c1", 0)], [call(A, None, None, 0)], [call(B, "add", "c2", 1)]),
        TWO,
    ),
    "SGLang: the arguments once more at the end": (deltas([call(A, "add", "c1", 0)], [call(A, index=0)]), [ADD_A]),
    "Gemini: whole calls, all with index 0": (deltas([call(A, "add", "c1", 0)], [call(B, "add", "c2", 0)]), TWO),
    "Gemini: ids that are the tool's name": (deltas([call(A, "add", "add", 0)], [call(B, "add", "add", 1)]), TWO),
    "Gemini: ids that are the tool's name, all with index 0": (
        deltas([call(A, "add", "add", 0)], [call(B, "add", "add", 0)]),
        TWO,
    ),
    "Gemini: empty ids": (deltas([call(A, "add", "", 0)], [call(B, "add", "", 0)]), TWO),
    "Gemini: two whole calls in one event, no index": (deltas([call(A, "add", "c1"), call(B, "add", "c2")]), TWO),
    "llama.cpp: whole calls without index": (deltas([call(A, "add", "c1")], [call(B, "add", "c2")]), TWO),
    "llama.cpp: neither ids nor index": (deltas([call(A, "add")], [call(B, "add")]), TWO),
    "llama.cpp: neither, in pieces": (
        deltas([call("", "add")], [call(A[:5])], [call(A[5:])], [call("", "add")], [call(B)]),
        TWO,
    ),
    "Ollama: an object for the arguments": (deltas([call({"a": 2, "b": 3}, "add", "c1", 0)]), [ADD_A]),
    "Ollama: index null": (deltas([call(A, "add", "c1", None)], [call(B, "add", "c2", None)]), TWO),
    "LM Studio: index as text": (deltas([call(A[:5], "add", "c1", "0")], [call(A[5:], index="0")]), [ADD_A]),
    "LMDeploy: no ids, all with index 0": (deltas([call(A, "add", index=0)], [call(B, "add", index=0)]), TWO),
    "Mistral: whole calls in one event": (
        deltas([call(A, "add", "D681PevKs", 0), call(B, "add", "E681PevKs", 1)]),
        TWO,
    ),
    "Anthropic: an empty object first": (deltas([call("{}", "add", "c1", 0)], [call(A, index=0)]), [ADD_A]),
    "OpenRouter: no text for a call without arguments": (deltas([call("", "now", "c1", 0)]), [NOW]),
    "any: no arguments at all": (deltas([call(..., "now", "c1", 0)]), [NOW]),
    "any: null for arguments": (deltas([call(None, "now", "c1", 0)]), [NOW]),
    "any: the text null for arguments": (deltas([call("null", "now", "c1", 0)]), [NOW]),
    "any: a call without arguments, then another tool": (
        deltas([call("", "now", index=0)], [call(A, "add", index=0)]),
        [NOW, ADD_A],
    ),
    "any: the JSON text of a JSON text": (deltas([call(json.dumps(A), "add", "c1", 0)]), [ADD_A]),
    "any: the id after the name": (deltas([call("", "add", index=0)], [call(A, None, "c1", 0)]), [ADD_A]),
    "any: a number for the id": (deltas([call(A, "add", 7, 0)]), [ADD_A]),
    "any: one object where a list belongs": (deltas(call(A, "add", "c1", 0)), [ADD_A]),
    "any: null among the calls": (deltas([None, call(A, "add", "c1", 0)]), [ADD_A]),
    "any: the arguments as `parameters`": (
        deltas([{"id": "c1", "function": {"name": "add", "parameters": {"a": 2, "b": 3}}}]),
        [ADD_A],
    ),
    "any: the call of old, `function_call`": (
        stream(event({"choices": [{"delta": {"function_call": {"name": "add", "arguments": A}}}]}), DONE),
        [ADD_A],
    ),
    "any: `stop` as the reason": (deltas([call(A, "add", "c1", 0)], finish="stop"), [ADD_A]),
    "any: no reason": (deltas([call(A, "add", "c1", 0)], finish=None), [ADD_A]),
    "any: whole messages": (message(call(A, "add", "c1"), call(B, "add", "c2")), TWO),
    "any: whole messages without ids": (message(call(A, "add"), call(B, "add")), TWO),
    "any: the same call twice in a message": (message(call(A, "add"), call(A, "add")), [ADD_A, ADD_A]),
}


@pytest.mark.parametrize("name", ROWS)
async def test_calls_are_understood_as_this_server_sends_them(server: Server, name: str) -> None:
    answer, wanted = ROWS[name]
    server.script = [answer, stream(piece("Done.", "stop"), DONE)]
    reply, _ = await with_tools(server)
    assert [(made.tool.partition(".")[2], made.arguments) for made in reply.tool_calls] == wanted
    assert not any(made.error for made in reply.tool_calls)
    assert (reply.payload.text, reply.finish_reason) == ("Done.", "stop")
    _, asked, *answered = server.requests[1]["messages"]
    ids = [each["id"] for each in asked["tool_calls"]]
    assert len(set(ids)) == len(wanted)
    assert all(ids)
    assert [each["tool_call_id"] for each in answered] == ids
    back = [(each["function"]["name"], json.loads(each["function"]["arguments"])) for each in asked["tool_calls"]]
    assert back == wanted


BROKEN = {
    "cut off": '{"a": 2, "b"',
    "a list": "[2, 3]",
    "a number": 5,
    "a word": "two and three",
    "two objects": A + B,
    "NaN": '{"a": NaN, "b": 1}',
    "beyond doubles": '{"a": 1e999, "b": 1}',
    "too deep": "[" * 100_000,
    "a number of 5,000 digits": '{"a": ' + "1" * 5_000 + "}",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_arguments_are_told_to_the_model_and_never_sent_back(server: Server, name: str) -> None:
    server.script = [
        deltas([call(BROKEN[name], "add", "c1", 0)], finish="length"),
        stream(piece("Sorry.", "stop"), DONE),
    ]
    reply, _ = await with_tools(server)
    assert reply.payload.text == "Sorry."
    assert [made.error for made in reply.tool_calls] == [True]
    _, asked, answered = server.requests[1]["messages"]
    assert asked["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}
    assert answered["content"] == "Error: the arguments must be a JSON object"


async def test_a_call_without_a_name_is_answered_and_sent_back_with_one(server: Server) -> None:
    server.script = [deltas([call(A, None, "c1", 0)]), stream(piece("Sorry.", "stop"), DONE)]
    await with_tools(server)
    _, asked, answered = server.requests[1]["messages"]
    assert asked["tool_calls"][0]["function"]["name"] == "unnamed"
    assert answered["content"] == "Error: this call names no tool"


async def test_halves_of_characters_in_a_call_are_joined_or_replaced(server: Server) -> None:
    pieces = [call('{"a": "\ud83d', "add", "c1", 0)], [call('\ude00", "b": "\\ud83d\ud83d"}', index=0)]
    server.script = [deltas(*pieces), stream(piece("Done.", "stop"), DONE)]
    reply, _ = await with_tools(server)
    assert reply.tool_calls[0].arguments == {"a": "😀", "b": "\ufffd\ufffd"}
    _, asked, _ = server.requests[1]["messages"]
    assert json.loads(asked["tool_calls"][0]["function"]["arguments"])["a"] == "😀"


async def test_what_a_server_wants_back_with_its_calls_is_sent_back(server: Server) -> None:
    signed = call(A, "add", "c1", 0, extra_content={"google": {"thought_signature": "s"}})
    thought = {"reasoning_content": "Hm", "reasoning_details": [{"type": "reasoning.text", "text": "Hm"}]}
    more = {"reasoning_content": "m."}
    parts = [event({"choices": [{"delta": each}]}) for each in (thought, more, {"tool_calls": [signed]})]
    server.script = [stream(*parts, DONE), stream(piece("Done.", "stop"), DONE)]
    await with_tools(server)
    _, asked, _ = server.requests[1]["messages"]
    assert asked["tool_calls"][0]["extra_content"] == {"google": {"thought_signature": "s"}}
    assert asked["reasoning_content"] == "Hmm."
    assert asked["reasoning_details"] == thought["reasoning_details"]


@pytest.mark.parametrize("calls", ["none", [5], [{"function": "add"}], [{"function": {"name": 5}}], 7])
async def test_what_is_no_call_is_an_error(server: Server, calls: Any) -> None:
    server.script = [deltas(calls)]
    with pytest.raises(ModelError, match="not a chat completion"):
        await with_tools(server)


async def test_words_beside_calls_are_kept(server: Server) -> None:
    both = event({"choices": [{"delta": {"content": "Let me see.", "tool_calls": [call(A, "add", "c1", 0)]}}]})
    server.script = [stream(both, DONE), stream(piece("It is 5.", "stop"), DONE)]
    reply, heard = await with_tools(server)
    assert reply.payload.text == "".join(heard) == "Let me see.\n\nIt is 5."


async def test_an_empty_reply_behind_calls_is_an_error(server: Server) -> None:
    server.script = [deltas([call(A, "add", "c1", 0)]), stream(piece("", "stop"), DONE)]
    with pytest.raises(ModelError, match="sent an empty reply"):
        await with_tools(server)


def test_pieces_of_names_are_joined() -> None:
    pieces = ToolCallPieces({"add_numbers"})
    for each in (call("", "add", "c1", 0), call(A[:3], "_numbers", index=0), call(A[3:], index=0)):
        pieces.add([each])
    assert [(each.name, each.arguments) for each in pieces.calls] == [("add_numbers", A)]


async def test_what_one_round_wrote_is_not_left_for_the_next(server: Server) -> None:
    usage = event({"choices": [], "usage": {"completion_tokens": 30}})
    calls = event({"choices": [{"delta": {"tool_calls": [call(A, "add", "c1", 0)]}}]})
    server.script = [stream(calls, usage, DONE), stream(piece("Done.", "stop"), usage, DONE)]
    await with_tools(server, most_tokens=100, generate={"max_new_tokens": 80})
    assert [request["max_tokens"] for request in server.requests] == [80, 70]
    server.script = [stream(calls, usage, DONE)]
    with pytest.raises(RunError, match=r"used up \(limits\.max_tokens\)"):
        await with_tools(server, most_tokens=60)
