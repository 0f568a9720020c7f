"""Real tool servers: a program on this machine and a web address, called from any event loop, never left behind."""

import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from free_port import lasting_port
from waiting import wait_until

from cachegraph.agents.tools.server import ToolServer
from cachegraph.agents.tools.spec import CommandTools, UrlTools
from cachegraph.errors import ConfigError, ToolError

pytest.importorskip("mcp")
PROGRAM = str(Path(__file__).with_name("tool_server.py"))


def program(**options: Any) -> ToolServer:
    return ToolServer("calc", CommandTools(command=(sys.executable, PROGRAM), **options), Path())


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def pid_of(server: ToolServer) -> int:
    return int(json.loads((await server.call("who", {})).text)["pid"])


def test_a_program_serves_runs_of_several_event_loops_and_ends_when_it_is_closed(monkeypatch: Any) -> None:
    monkeypatch.setenv("SECRET", "handed on")
    monkeypatch.setenv("MODE", "not handed on")
    server = program(env={"MODE": "plain"}, inherit_env=("SECRET",))

    async def use() -> dict[str, Any]:
        assert [tool.name for tool in await server.tools()] == ["add", "who", "wait", "die"]
        assert (await server.call("add", {"a": 1, "b": 2})) == ("3", False)
        assert (await server.call("add", {"a": "x", "b": 2})).error
        assert (await server.call("mul", {})) == ("Unknown tool: mul", True)
        return dict(json.loads((await server.call("who", {})).text))

    told = [anyio.run(use, backend=backend) for backend in ("asyncio", "trio", "asyncio")]
    assert told[0] == told[1] == told[2]
    assert (told[0]["mode"], told[0]["secret"]) == ("plain", "handed on")
    assert runs(told[0]["pid"])
    anyio.run(server.close)
    assert not runs(told[0]["pid"])


def test_a_call_that_takes_too_long_is_given_up_and_a_dead_program_is_started_again() -> None:
    async def use() -> None:
        server = program(timeout=30.0)
        try:
            first = await pid_of(server)
            server._spec = CommandTools(command=("x",), timeout=0.2)
            assert await server.call("wait", {"seconds": 600}) == ("wait took longer than 0.2 s and was given up", True)
            server._spec = CommandTools(command=(sys.executable, PROGRAM), timeout=30.0)
            with anyio.move_on_after(0.1) as scope:
                await server.call("wait", {"seconds": 600})
            assert scope.cancelled_caught
            with pytest.raises(ToolError, match="the tool server 'calc' does not answer"):
                await server.call("die", {})
            assert await pid_of(server) != first
        finally:
            await server.close()

    anyio.run(use)


def test_a_server_that_nobody_closes_ends_with_its_owner() -> None:
    server = program()
    pid = anyio.run(pid_of, server)
    del server
    gc.collect()
    wait_until(lambda: not runs(pid))


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("no-such-program-here",), "can't be used: there is no program 'no-such-program-here'; install it"),
        ((sys.executable, "-c", "raise SystemExit('no luck')"), "can't be used: .*its last output: 'no luck'"),
        ((sys.executable, "-c", "import time; time.sleep(60)"), "did not answer within its timeout of 1 s"),
    ],
)
def test_a_program_that_does_not_serve_says_why(
    command: tuple[str, ...], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp.client.stdio.PROCESS_TERMINATION_TIMEOUT", 0.1)
    server = ToolServer("calc", CommandTools(command=command, timeout=1.0 if "time" in command[-1] else 30.0), Path())
    with pytest.raises(ToolError, match=why):
        anyio.run(server.tools)


def test_a_variable_that_is_to_be_handed_on_must_be_set() -> None:
    with pytest.raises(ConfigError, match="needs the environment variable 'NOT_SET_HERE', which is not set"):
        anyio.run(program(inherit_env=("NOT_SET_HERE",)).tools)


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    port = lasting_port()
    served = subprocess.Popen([sys.executable, PROGRAM, str(port)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port))
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        served.terminate()
        served.wait(60)


def test_a_server_behind_an_address_is_called_over_http(web: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("CACHEGRAPH_TOOLS_KEY", "k-1")
    server = ToolServer("calc", UrlTools(url=web, api_key_env="CACHEGRAPH_TOOLS_KEY"), Path())

    async def use() -> None:
        try:
            assert len(await server.tools()) == 4
            assert await server.call("add", {"a": 1, "b": 2}) == ("3", False)
        finally:
            await server.close()

    anyio.run(use)
    anyio.run(use, backend="trio")  # closed, it connects again


def test_an_address_where_nobody_answers_is_an_error(monkeypatch: Any) -> None:
    server = ToolServer("calc", UrlTools(url="http://127.0.0.1:9/mcp"), Path())
    with pytest.raises(ToolError, match="the tool server 'calc' can't be used: .*connect"):
        anyio.run(server.tools)
    keyed = ToolServer("calc", UrlTools(url="http://127.0.0.1:9/mcp", api_key_env="CACHEGRAPH_NO_KEY"), Path())
    with pytest.raises(ConfigError, match="needs a key, and 'CACHEGRAPH_NO_KEY' is not set"):
        anyio.run(keyed.tools)
