"""Recipes as MCP tools, called by the SDK's own client."""

import io
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.shared.exceptions import MCPError
from server_graphs import Gate, gated, scripted_duo

from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.errors import CachegraphError, ConfigError, InputError
from cachegraph.graph.graph import Graph
from cachegraph.serving.mcp_tools import GraphTools, serve_stdio

pytestmark = pytest.mark.anyio


async def loaded(*graphs: Graph) -> GraphTools:
    tools = GraphTools(graphs)
    await tools.load()
    return tools


def said(result: Any) -> str:
    (part,) = result.content
    return str(part.text)


async def test_a_recipe_is_a_tool_with_its_inputs() -> None:
    numbered = _named("numbered").add_input("count", default=3, type="number")
    tools = await loaded(scripted_duo(description="Two agents answer."), numbered)
    async with Client(tools.server) as client:
        tool, other = (await client.list_tools()).tools
        assert (tool.name, tool.description) == ("duo", "Two agents answer.")
        assert tool.input_schema["required"] == ["question"]
        assert tool.input_schema["properties"]["question"] == {"type": "string", "description": "A question."}
        assert other.input_schema["properties"] == {"count": {"type": "number", "default": 3}}
        result = await client.call_tool("duo", {"question": "why?"})
        assert (said(result), result.is_error) == ("answerer(expert(why?))", False)


async def test_calls_report_their_progress() -> None:
    tools, heard = await loaded(scripted_duo()), list[str | None]()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)

    async with Client(tools.server) as client:
        await client.call_tool("duo", {"question": "why?"}, progress_callback=on_progress)
    assert heard[0] == "expert starts"
    assert "expert has finished" in heard
    assert heard[-1] == "answerer has finished"


async def test_what_goes_wrong_is_a_sentence_for_the_model() -> None:
    failing = ScriptedAgent("expert", fail=ValueError("no file '/home/ann/secret/notes.txt'"))
    tools = await loaded(scripted_duo(failing))
    async with Client(tools.server) as client:
        calls: list[tuple[dict[str, Any], str]] = [
            ({}, "input 'question' is missing (A question.); add the argument 'question'"),
            ({"question": "x", "other": 1}, "there is no input 'other'"),
            ({"question": ["x"]}, "must be text or a number"),
            ({"question": "x"}, "agent 'expert' failed"),
        ]
        for arguments, words in calls:
            result = await client.call_tool("duo", arguments)
            assert result.is_error
            assert words in said(result)
            assert "/home" not in said(result)
        with pytest.raises(MCPError, match="there is no tool 'nothing'"):
            await client.call_tool("nothing", {})


async def test_models_that_can_not_be_loaded_fail_every_call_and_not_the_server() -> None:
    def prepare() -> None:
        raise InputError("no such model")

    tools = GraphTools([scripted_duo()])
    await tools.load(prepare)
    async with Client(tools.server) as client:
        assert len((await client.list_tools()).tools) == 1
        for _ in range(2):
            result = await client.call_tool("duo", {"question": "x"})
            assert (result.is_error, said(result)) == (True, "no such model")


async def test_a_call_waits_for_the_models() -> None:
    tools = GraphTools([scripted_duo()])
    async with Client(tools.server) as client, anyio.create_task_group() as group:
        answers: list[str] = []

        async def call() -> None:
            answers.append(said(await client.call_tool("duo", {"question": "x"})))

        group.start_soon(call)
        await client.list_tools()
        assert not answers
        group.start_soon(tools.load)
    assert answers == ["answerer(expert(x))"]


async def test_a_cancelled_call_cancels_its_run() -> None:
    gate = Gate()
    tools = await loaded(gated(gate))
    async with Client(tools.server) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "duo", {"question": "x"})
            await anyio.to_thread.run_sync(gate.entered.acquire)
            group.cancel_scope.cancel()
        with anyio.fail_after(60):
            while not gate.cancelled:  # noqa: ASYNC110  (another thread sets it)
                await anyio.sleep(0.01)
        gate.open.set()
        assert said(await client.call_tool("duo", {"question": "x"})) == "at last"


async def test_several_outputs_are_structured() -> None:
    graph = scripted_duo()
    graph.output = ["expert", "answerer"]
    tools = await loaded(graph)
    async with Client(tools.server) as client:
        result = await client.call_tool("duo", {"question": "x"})
    assert result.structured_content == {"expert": "expert(x)", "answerer": "answerer(expert(x))"}
    assert json.loads(said(result)) == result.structured_content


def test_what_can_not_be_a_tool_is_refused() -> None:
    with pytest.raises(InputError, match="two recipes make a tool 'a_b'"):
        GraphTools([_named("a.b"), _named("a_b")])
    asking = scripted_duo()
    asking.add_agent("ask", pause="Really?")
    with pytest.raises(InputError, match="asks a person"):
        GraphTools([asking])


def _named(name: str) -> Graph:
    graph = Graph(name=name, create=scripted())
    graph.add_agent("a", model="m", prompt="x")
    graph.output = "a"
    return graph


HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
OPENING = (
    f'{{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {json.dumps(HELLO)}}}\n'
    '{"jsonrpc": "2.0", "method": "notifications/initialized"}\n'
).encode()
LIST = b'{"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {"_meta": {"x": "%s"}}}\n'


class Pipes:
    """A client's two pipes: it writes all its lines at once, and leaves when `last` is answered.

    `broken`: the answers' pipe has no reader.
    """

    def __init__(self, given: bytes, last: bytes, *, broken: bool = False):
        answered = threading.Event()

        class Requests(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def readinto(self, into: Any) -> int:
                nonlocal given
                piece, given = given[: len(into)], given[len(into) :]
                if not piece:
                    answered.wait(60)
                into[: len(piece)] = piece
                return len(piece)

        class Answers(io.BytesIO):
            def write(self, raw: Any) -> int:
                if broken:
                    answered.set()
                    raise BrokenPipeError(32, "Broken pipe")
                count = super().write(raw)
                if last in self.getvalue():
                    answered.set()
                return count

        self.stdin, self.answers = io.TextIOWrapper(io.BufferedReader(Requests())), Answers()
        self.stdout = io.TextIOWrapper(self.answers)


def _serve(monkeypatch: pytest.MonkeyPatch, stdin: Any, stdout: Any) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys, "stdout", stdout)
    anyio.run(serve_stdio, GraphTools([scripted_duo()]), lambda: None)


@pytest.mark.parametrize("odd", [b"caf\xe9", b"\\ud83d", b"a\0b"], ids=ascii)
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"junk\n\xff\n"], ids=ascii)
def test_a_client_that_writes_no_clean_json_is_answered(
    odd: bytes, before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipes = Pipes(before + OPENING + LIST % odd, b'"id":2')
    _serve(monkeypatch, pipes.stdin, pipes.stdout)
    assert [json.loads(line)["id"] for line in pipes.answers.getvalue().splitlines()] == [1, 2]


def test_streams_that_cannot_be_used_end_the_server_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pipes = Pipes(OPENING, b'"id":1', broken=True)
    with pytest.raises(CachegraphError, match="answers can't be written: Broken pipe"):
        _serve(monkeypatch, pipes.stdin, pipes.stdout)
    with pytest.raises(ConfigError, match="stdin is closed"):
        _serve(monkeypatch, None, io.StringIO())
    pipes.stdout.detach()  # which would fail to flush


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_command_speaks_the_protocol_over_its_standard_streams(tmp_path: Path) -> None:
    (tmp_path / "steps.py").write_text(
        "def answer(question: str) -> str:\n    print('noise')\n    return question[::-1]\n"
    )
    (tmp_path / "back.yaml").write_text(
        "version: 1\nname: back\ninputs: {question: {}}\n"
        "agents: {answer: {function: 'steps.py:answer'}}\noutput: answer\n"
    )
    command = [*("-m", "cachegraph", "mcp"), str(tmp_path / "back.yaml"), "--allow-code"]
    env = {**os.environ, "CACHEGRAPH_HOME": str(tmp_path / "home")}
    async with Client(StdioServerParameters(command=sys.executable, args=command, env=env)) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["back"]
        assert said(await client.call_tool("back", {"question": "abc"})) == "cba"
