"""Agents behind an endpoint, against a real server on this machine that follows a script."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from chat_server import DONE, USAGE, Answer, Server, calling, event, hang_up, piece, status, stream
from endpoint_agent import KEY, say, with_tools

from cachegraph import Graph, RunError
from cachegraph.agents.base import Turn
from cachegraph.agents.endpoint.agent import EndpointAgent
from cachegraph.agents.spec import AgentSpec, EndpointSpec
from cachegraph.errors import CachegraphError, ConfigError, ModelError

pytestmark = pytest.mark.anyio


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


OK = stream(piece("Blue", None), piece(" light", "stop"), USAGE, DONE)


async def refusal(server: Server, **options: Any) -> str:
    with pytest.raises(CachegraphError) as caught:
        await say(server, **options)
    assert KEY not in str(caught.value) + repr(caught.value)
    assert isinstance(caught.value, ModelError)
    return str(caught.value)


async def test_a_reply_is_streamed_and_counted(server: Server) -> None:
    server.script = [OK]
    pieces: list[str] = []
    reply = await say(server, on_text=pieces.append, system="Be kind.", generate={"max_new_tokens": 9, "top_k": 3})
    assert reply.payload.text == "Blue light"
    assert pieces == ["Blue", " light"]
    assert (reply.tokens.prefilled, reply.tokens.generated) == (7, 2)
    assert reply.timing.first_token is not None
    assert 0 < reply.timing.first_token <= reply.timing.total
    assert server.headers[0]["path"] == "/v1/chat/completions"
    assert server.requests[0] == {
        "model": "big",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why, Ann?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "max_tokens": 9,
        "top_k": 3,
    }


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["Hi \ud83d", "\ude00!"], "Hi 😀!"),
        (["Hi \ud83d", "", "\ude00"], "Hi 😀"),
        (["\ud83d", "x"], "\ufffdx"),
        (["x\ude00"], "x\ufffd"),
        (["x", "\ud83d"], "x\ufffd"),
    ],
)
async def test_half_an_emoji_waits_for_its_other_half_or_is_replaced(
    server: Server, pieces: list[str], text: str
) -> None:
    server.script = [stream(*map(piece, pieces), piece("", "stop"), DONE)]
    heard: list[str] = []
    reply = await say(server, on_text=heard.append)
    assert reply.payload.text == "".join(heard) == text


SORTED = {"type": "object", "properties": {"kind": {"enum": ["bug", "idea"]}}, "required": ["kind"]}


async def test_a_schema_is_passed_on_and_the_reply_becomes_data(server: Server) -> None:
    server.script = [stream(piece('{"kind": '), piece('"bug"}', "stop"), DONE)]
    reply = await say(server, generate={"json_schema": SORTED})
    assert reply.payload.data == {"kind": "bug"}
    assert server.requests[0]["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": SORTED, "strict": True},
    }


@pytest.mark.parametrize(
    ("text", "finish", "said"),
    [
        (
            '{"kind": "b',
            "length",
            "the reply of agent 'x' was cut off after 128 tokens, before its JSON was whole; raise",
        ),
        (
            '{"kind": "joke"}',
            "stop",
            "the reply of agent 'x' does not fit its json_schema at $.kind: 'joke' is not one of",
        ),
        ("A bug.", "stop", "the reply of agent 'x' is not JSON"),
    ],
)
async def test_a_server_that_ignores_the_schema_is_found_out(server: Server, text: str, finish: str, said: str) -> None:
    server.script = [stream(piece(text, finish), DONE)]
    assert said in await refusal(server, generate={"json_schema": SORTED})


async def test_pieces_come_as_they_are_sent(server: Server) -> None:
    first_heard = threading.Event()
    server.script = [stream(piece("one"), first_heard, piece(" two", "stop"), DONE)]
    reply = await say(server, on_text=lambda _: first_heard.set())
    assert first_heard.is_set()
    assert reply.payload.text == "one two"


async def test_upstream_replies_fill_their_slots_or_stand_in_front(server: Server) -> None:
    server.script = [OK]
    reply = await say(server, prompt="{{ a }}, {{ name }}!", upstream={"b": "from b", "a": "from a"})
    contents = [(message["role"], message["content"]) for message in server.requests[0]["messages"]]
    assert contents == [("user", "from b"), ("user", "from a, Ann!")]
    assert reply.edges["b"].bytes == 6
    assert reply.edges["a"].channel_used == "text"


async def test_an_agent_that_only_reads_asks_nobody(server: Server) -> None:
    reply = await say(server, generate={"max_new_tokens": 0})
    assert reply.payload.text == "Why, Ann?"
    assert not server.requests


async def test_an_answer_that_does_not_stream_is_taken_too(server: Server) -> None:
    body = json.dumps({"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]})
    server.script = [status(200, body, content_type="application/json")]
    assert (await say(server)).payload.text == "whole"


@pytest.mark.parametrize("trouble", [status(429, retry_after="0"), status(500), status(503, "busy"), hang_up])
async def test_what_may_pass_is_tried_again(server: Server, trouble: Answer) -> None:
    server.script = [trouble, trouble, OK]
    assert (await say(server)).payload.text == "Blue light"
    assert len(server.requests) == 3


async def test_patience_ends_after_max_retries(server: Server) -> None:
    server.script = [status(500, json.dumps({"error": {"message": "out of memory"}}))]
    text = await refusal(server, retries=1)
    assert "agent 'x'" in text
    assert "answered 500: out of memory (2 attempts)" in text
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("trouble", "kind"), [(status(429), "rate_limit"), (status(503), "server"), (hang_up, "connection")]
)
async def test_only_what_the_agent_retries_on_is_tried_again(server: Server, trouble: Answer, kind: str) -> None:
    others = [each for each in ("connection", "rate_limit", "server") if each != kind]
    server.script = [trouble, OK]
    await refusal(server, retry={"backoff": 0.001, "retry_on": others})
    assert len(server.requests) == 1
    server.script = [trouble, OK]
    assert (await say(server, retry={"backoff": 0.001, "retry_on": [kind]})).payload.text == "Blue light"


async def test_an_endpoints_max_retries_hold_for_agents_that_have_no_retry_of_their_own() -> None:
    endpoint = EndpointSpec(base_url="http://127.0.0.1:9/v1", model="big", max_retries=4)
    for spec, attempts in (({}, 5), ({"retry": {"max_attempts": 1}}, 1)):
        agent = EndpointAgent("x", AgentSpec.model_validate({"model": "m", "prompt": "p", **spec}), endpoint)
        await agent.open()
        assert agent._api is not None
        assert agent._api.retry.max_attempts == attempts


async def test_waits_double_from_the_backoff_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("cachegraph.agents.endpoint.retrying_client.anyio.sleep", sleep)
    monkeypatch.setattr("cachegraph.agents.endpoint.retrying_client.random", lambda: 0.5)
    server.script = [status(500)]
    await refusal(server, retry={"max_attempts": 4, "backoff": 2})
    assert waits == [2, 4, 8]


async def test_no_more_is_asked_for_than_is_left_of_the_runs_budget(server: Server) -> None:
    server.script = [OK]
    await say(server, most_tokens=5)
    await say(server, most_tokens=500, generate={"max_new_tokens": 9})
    assert [request["max_tokens"] for request in server.requests] == [5, 9]
    with pytest.raises(RunError, match=r"used up \(limits\.max_tokens\)"):
        await say(server, most_tokens=0)
    assert len(server.requests) == 2


async def test_a_wait_that_is_too_long_is_not_waited(server: Server) -> None:
    server.script = [status(429, retry_after="3600")]
    assert "answered 429" in await refusal(server)
    assert len(server.requests) == 1


async def test_a_wrong_key_is_not_tried_again_and_never_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_KEY", KEY)
    server.script = [status(401, json.dumps({"error": {"message": f"Incorrect API key: {KEY}\x1b[31m"}}))]
    text = await refusal(server, key="CACHEGRAPH_KEY")
    assert "answered 401: Incorrect API key: ***\ufffd[31m; check the key" in text
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert len(server.requests) == 1


async def test_no_repr_shows_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_KEY", KEY)
    endpoint = EndpointSpec(base_url="http://127.0.0.1:1/v1", model="big", api_key_env="CACHEGRAPH_KEY")
    agent = EndpointAgent("x", AgentSpec(model="m", prompt="p"), endpoint)
    await agent.open()
    assert KEY not in repr(agent) + repr(agent._api) + repr(agent.peer())
    assert agent.peer().why_no_cache == "agent 'x' speaks through an endpoint, which gives no access to its KV cache"


@pytest.mark.parametrize(("value", "message"), [(None, "'CACHEGRAPH_KEY' is not set"), ("a\nb", "holds no key")])
async def test_a_key_that_is_missing_or_none_names_its_variable(
    server: Server, monkeypatch: pytest.MonkeyPatch, value: str | None, message: str
) -> None:
    monkeypatch.delenv("CACHEGRAPH_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("CACHEGRAPH_KEY", value)
    with pytest.raises(ConfigError, match=message):
        await say(server, key="CACHEGRAPH_KEY")
    assert not server.requests


async def test_a_redirect_is_not_followed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_KEY", KEY)
    server.script = [status(307, location=server.url + "/chat/completions"), OK]
    assert "redirect (307), which is not followed" in await refusal(server, key="CACHEGRAPH_KEY")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([piece("a"), event("{oops")], "not a chat completion: {oops"),
        ([event("[1, 2]")], "not a chat completion"),
        ([event({"choices": [{"delta": {"content": 5}}]})], "not a chat completion"),
        ([event({"choices": "none"})], "not a chat completion"),
        ([event({"error": {"message": "too many words"}})], "reported an error: too many words"),
        ([piece("a half")], "ended its reply in the middle"),
        ([], "ended its reply in the middle"),
        ([b"data: " + b"x" * 17_000_000], "an event that does not end"),
        ([event("[" * 100_000)], "not a chat completion"),
    ],
)
async def test_a_stream_that_makes_no_sense_is_an_error(server: Server, parts: list[bytes], message: str) -> None:
    server.script = [stream(*parts)]
    assert re.search(message, await refusal(server))
    assert len(server.requests) == 1


async def test_an_answer_of_another_kind_is_an_error(server: Server) -> None:
    server.script = [status(200, "<html>", content_type="text/html")]
    assert "text/html" in await refusal(server)


async def test_a_server_that_is_not_there_is_named(server: Server) -> None:
    url = server.url
    server.close()
    text = await refusal(server)
    assert f"at {url} can't be reached; check base_url" in text
    assert "(3 attempts)" in text


async def test_a_slow_reply_can_be_cancelled(server: Server) -> None:
    never = threading.Event()
    server.script = [stream(piece("one"), never)]
    with anyio.fail_after(60), anyio.CancelScope() as scope:
        await say(server, on_text=lambda _: scope.cancel())
    never.set()
    assert scope.cancelled_caught


async def test_one_agent_serves_runs_in_many_event_loops(server: Server, anyio_backend: str) -> None:
    server.script = [OK]
    endpoint = EndpointSpec(base_url=server.url, model="big")
    agent = EndpointAgent("x", AgentSpec(model="m", prompt="p"), endpoint)
    await agent.open()

    async def once() -> str | None:
        return (await agent.turn(Turn({}))).payload.text

    def elsewhere() -> str | None:
        return anyio.run(once, backend=anyio_backend)

    assert await once() == "Blue light"
    assert await anyio.to_thread.run_sync(elsewhere) == "Blue light"


async def test_a_graph_of_endpoints_runs_and_says_why_no_cache_travels(server: Server) -> None:
    server.script = [OK]
    graph = Graph(models={"big": {"base_url": server.url, "model": "big-1"}}, output="b")
    graph.add_agent("a", model="big", prompt="Say a colour.").add_agent("b", model="big", prompt="{{ a }}?")
    result = await graph.add_edge("a", "b", "auto").arun()
    assert result.text == "Blue light"
    assert server.requests[1]["messages"] == [{"role": "user", "content": "Blue light?"}]
    assert result.agents["a"].model == "big-1"
    assert result.edges["a", "b"].channel_used == "text"
    assert "speaks through an endpoint" in (result.edges["a", "b"].fallback_reason or "")


async def test_an_endpoint_that_fails_fails_its_agent_in_the_run(server: Server) -> None:
    server.script = [status(404, "no such model")]
    graph = Graph(models={"big": {"base_url": server.url, "model": "big-1"}}, output="a")
    with pytest.raises(RunError, match="agent 'a' failed: the endpoint of agent 'a' at .* answered 404: no such model"):
        await graph.add_agent("a", model="big", prompt="Hello.").arun()


# Tools and memory


async def test_calls_of_the_api_are_made_and_their_results_sent_back(server: Server) -> None:
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1,'}}
    rest = {"index": 0, "function": {"arguments": ' "b": 2}'}}
    server.script = [calling(first, rest), stream(piece("It is 3."), USAGE, DONE)]
    reply, heard = await with_tools(server)
    assert reply.payload.text == "".join(heard) == "It is 3."
    assert (reply.tokens.prefilled, reply.tokens.generated) == (14, 4)
    assert [(c.tool, c.arguments, c.result) for c in reply.tool_calls] == [("calc.add", {"a": 1, "b": 2}, "3")]
    assert server.requests[0]["tools"][0]["function"]["name"] == "add"
    user, asked, answered = server.requests[1]["messages"]
    assert user == {"role": "user", "content": "1+2?"}
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    assert asked == {"role": "assistant", "content": None, "tool_calls": [call]}
    assert answered == {"role": "tool", "tool_call_id": "c1", "content": "3"}


async def test_calls_in_the_text_are_made_too(server: Server) -> None:
    call = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
    server.script = [stream(piece(call), USAGE, DONE), stream(piece("It is 3."), USAGE, DONE)]
    reply, heard = await with_tools(server)
    assert reply.payload.text == "".join(heard) == "It is 3."
    assert server.requests[1]["messages"][1:] == [
        {"role": "assistant", "content": call},
        {"role": "user", "content": "<tool_response>\n3\n</tool_response>"},
    ]


async def test_an_endpoint_that_does_nothing_but_call_is_stopped(server: Server) -> None:
    server.script = [calling({"index": 0, "id": "c", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}})]
    with pytest.raises(RunError, match="its limit is 2 rounds"):
        await with_tools(server, tool_limits={"rounds": 2})
    assert len(server.requests) == 3


async def test_earlier_turns_of_a_session_are_sent_in_front(server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    server.script = [stream(piece("One."), USAGE, DONE), stream(piece("Two."), USAGE, DONE)]
    graph = Graph(name="chat", models={"far": EndpointSpec(base_url=server.url, model="m")})
    graph.add_input("q")
    graph.add_agent("talker", model="far", system="Be brief.", prompt="{{ q }}", memory=True)
    graph.output = "talker"
    async with graph:
        await graph.arun(q="first?", session="s")
        result = await graph.arun(q="second?", session="s")
    said = [(message["role"], message["content"]) for message in server.requests[1]["messages"]]
    assert said == [("system", "Be brief."), ("user", "first?"), ("assistant", "One."), ("user", "second?")]
    report = result.agents["talker"].memory
    assert report is not None
    assert (report.turns, report.reused) == (1, 0)
