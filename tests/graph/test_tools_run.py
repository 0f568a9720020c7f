"""Tool servers of a graph: shared by its agents, and gone whenever the graph is, however that came about."""

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil
import pytest

from cachegraph import ConfigError, Graph, Interrupted, RecipeError
from cachegraph.agents.base import Reply, Turn
from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.agents.tools.agent_tools import AgentTools, ToolRounds
from cachegraph.agents.tools.connection import Connection
from cachegraph.agents.tools.content import Content
from cachegraph.agents.tools.servers import Toolbox
from cachegraph.channels.payload import Payload
from cachegraph.graph.run.events import ToolCalled

pytest.importorskip("mcp")
FOLDER = Path(__file__).parents[1] / "agents"


class Calling(ScriptedAgent):
    """Calls `who`, or what it is told to, then says what came back."""

    def __init__(self, name: str, spec: Any, toolbox: Toolbox, call: str):
        super().__init__(name)
        self.tools = AgentTools(name, spec.tools, spec.tool_limits, toolbox)
        self.call = call

    async def open(self) -> None:
        await self.tools.open()

    async def turn(self, turn: Turn) -> Reply:
        reply = Reply(Payload(self.name, ""))
        rounds = ToolRounds(self.name, self.tools, reply.tool_calls, turn.on_tool)
        (reply.payload.text,) = await rounds.make(rounds.hear(f"<tool_call>{self.call}</tool_call>").calls)
        return reply

    async def close(self) -> None:
        await self.tools.close()


class Missing(ScriptedAgent):
    async def open(self) -> None:
        while not servers():  # noqa: ASYNC110 (another process sets no event)
            await anyio.sleep(0.02)
        raise ConfigError("no key")


def servers() -> list[psutil.Process]:
    """The tool servers that this process has started."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it may end meanwhile
            if any("tool_server.py" in word for word in child.cmdline()):
                found.append(child)
    return found


@pytest.fixture
def both_called(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once both agents have called a tool. A server that is at work is ended without the SDK's 2 s of patience."""
    event, calls, call = threading.Event(), list[str](), Connection.call

    async def noted(held: Connection, tool: str, arguments: dict[str, Any]) -> Content:
        calls.append(tool)
        if len(calls) == 2:
            event.set()
        return await call(held, tool, arguments)

    monkeypatch.setattr(Connection, "call", noted)
    monkeypatch.setattr("mcp.client.stdio.PROCESS_TERMINATION_TIMEOUT", 0.1)
    return event


def creating(call: str, *, broken: bool = False) -> Any:
    def create(name: str, spec: Any, *_: Any, toolbox: Toolbox | None = None, **__: Any) -> Any:
        if toolbox is not None:
            return Calling(name, spec, toolbox, call)
        return Missing(name) if broken else ScriptedAgent(name)

    return create


def graph(call: str = '{"name": "who"}', *, broken: bool = False) -> Graph:
    made = Graph(name="tooled", folder=FOLDER, create=creating(call, broken=broken))
    made.add_tools("calc", command=[sys.executable, "tool_server.py"])
    for name in ("a", "b"):
        made.add_agent(name, model="m", prompt="", tools=["calc"])
        made.add_edge(name, "end")
    made.add_agent("end", model="m", prompt="")
    made.output = "end"
    return made


def test_agents_share_a_server_which_ends_with_the_graph_and_every_call_is_told() -> None:
    async def run() -> list[ToolCalled]:
        async with made.stream() as stream:
            return [event async for event in stream if isinstance(event, ToolCalled)]

    made = graph()
    with made:
        told = anyio.run(run)
        result = made.run()
        assert len(servers()) == 1
    assert not servers()
    assert {event.agent for event in told} == {"a", "b"}
    assert result.agents["a"].text == result.agents["b"].text
    (call,) = result.agents["a"].tool_calls
    assert (call.tool, call.error, call.round) == ("calc.who", False, 1)
    assert type(result).from_json(result.to_json()).agents["a"].tool_calls == [call]


WAIT = '{"name": "wait", "arguments": {"seconds": 600}}'
INNER = """\
version: 1
name: inner
tools: {calc: {command: %s}}
agents: {a: {model: m, prompt: "", tools: [calc]}}
output: a
"""
OUTER = """\
version: 1
name: outer
agents:
  team: {graph: inner.yaml}
  end: {model: m, prompt: "{{ team }}"}
edges: [{from: team, to: end}]
output: end
"""


def test_agents_of_an_included_recipe_use_its_tools(tmp_path: Path) -> None:
    command = json.dumps([sys.executable, str(FOLDER / "tool_server.py")])
    (tmp_path / "inner.yaml").write_text(INNER % command)
    (tmp_path / "outer.yaml").write_text(OUTER)
    with pytest.raises(RecipeError, match="--allow-code"):
        Graph.from_yaml(tmp_path / "outer.yaml", create=creating('{"name": "who"}'))
    made = Graph.from_yaml(tmp_path / "outer.yaml", allow_code=True, create=creating('{"name": "who"}'))

    async def run() -> list[ToolCalled]:
        async with made.stream() as stream:
            return [event async for event in stream if isinstance(event, ToolCalled)]

    with made:
        (told,) = anyio.run(run)
        assert (told.agent, told.turn) == ("team/a", "team/a")
        (call,) = made.run().agents["team"].inside["a"].tool_calls
        assert call.tool == "calc.who"
        assert len(servers()) == 1
    assert not servers()


def test_ctrl_c_during_a_tool_call_leaves_no_server(both_called: threading.Event) -> None:
    def interrupt() -> None:
        if both_called.wait(60):
            os.kill(os.getpid(), signal.SIGINT)

    with graph(WAIT) as made:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(Interrupted) as caught:
            made.run()
        assert caught.value.result.agents["a"].status == "cancelled"
    assert not servers()


def test_an_interrupted_run_and_a_graph_that_can_not_be_opened_leave_no_server(both_called: threading.Event) -> None:
    async def run() -> None:
        async with graph(WAIT) as made, anyio.create_task_group() as group:
            group.start_soon(made.arun)
            await anyio.to_thread.run_sync(both_called.wait, 60)
            assert servers()
            group.cancel_scope.cancel()

    anyio.run(run)
    assert not servers()
    with pytest.raises(ConfigError, match="no key"), graph(broken=True):
        pass
    assert not servers()
