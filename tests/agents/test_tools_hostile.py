"""Tool servers that list without end, share names, or would outlive us."""

import asyncio
import importlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import ValidationError
from waiting import wait_until

from cachegraph.agents.tools import connection
from cachegraph.agents.tools.agent_tools import LONGEST, AgentTools, ToolRounds, _named
from cachegraph.agents.tools.connection import Tool, _last_words, _log_file
from cachegraph.agents.tools.lenient_messages import mended
from cachegraph.agents.tools.parse_calls import ParsedCall
from cachegraph.agents.tools.server import ToolServer
from cachegraph.agents.tools.servers import Toolbox
from cachegraph.agents.tools.spec import CommandTools, ToolLimits
from cachegraph.errors import ToolError

pytest.importorskip("mcp")
PROGRAM = str(Path(__file__).with_name("raw_tool_server.py"))


def spec(*mode: str, timeout: float = 30.0) -> CommandTools:
    return CommandTools(command=(sys.executable, PROGRAM, *mode), timeout=timeout)


def names(*mode: str, timeout: float = 30.0) -> list[str]:
    server = ToolServer("raw", spec(*mode, timeout=timeout), Path())

    async def ask() -> list[str]:
        try:
            return [tool.name for tool in await server.tools()]
        finally:
            await server.close()

    return anyio.run(ask)


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("same", "lists its tools without end: it gives the page 'again' twice"),
        ("circle", "lists its tools without end: it gives the page '1' twice"),
        ("new", "lists its tools without end: there are more than 100 pages"),
    ],
)
def test_a_list_of_tools_that_never_ends_is_an_error(mode: str, why: str) -> None:
    with pytest.raises(ToolError, match=f"the tool server 'raw' {why}"):
        names(mode)


def test_a_program_that_is_being_started_is_not_left_to_an_event_loop_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """asyncio would log it on standard error, and nobody would wait for the program."""
    import mcp

    starting, may_start, cancelled = threading.Event(), threading.Event(), list[bool]()

    @asynccontextmanager
    async def slowly(*_: Any, **__: Any) -> AsyncIterator[Any]:
        starting.set()
        try:
            await anyio.to_thread.run_sync(may_start.wait)
            await anyio.lowlevel.checkpoint()
        except BaseException:
            cancelled.append(True)
            raise
        (to_server, asked), (answered, from_server) = (anyio.create_memory_object_stream[Any](1) for _ in range(2))
        with to_server, asked, answered, from_server:
            yield from_server, to_server

    monkeypatch.setattr(mcp, "stdio_client", slowly)
    held = connection.Connection("raw", spec("same"), Path())
    assert starting.wait(60)
    stopping = threading.Thread(target=held.stop)
    stopping.start()
    loop, _ = held._inside.result()
    asyncio.run_coroutine_threadsafe(anyio.sleep(0.01), loop).result(60)  # the stop has reached the loop
    may_start.set()
    stopping.join(60)
    assert not stopping.is_alive()
    assert not cancelled
    with pytest.raises(ToolError, match="was stopped before it was ready"):
        held.ready.result(0)


@pytest.mark.parametrize("mode", ["slow", "flood"])
def test_the_timeout_is_for_the_whole_list(mode: str) -> None:
    server = ToolServer("raw", spec(mode), Path())

    async def ask() -> None:
        try:
            (await server._connected())._spec = spec(mode, timeout=0.5)  # a busy machine may start a program in longer
            with pytest.raises(ToolError, match="did not list its tools within its timeout of 0.5 s"):
                await server.tools()
        finally:
            await server.close()

    anyio.run(ask)


def test_an_empty_cursor_is_the_end_and_pages_are_joined() -> None:
    assert names("empty") == ["go"]
    assert names("three") == ["go"] * 3


class Server:
    """Stands for a connected server."""

    def __init__(self, name: str):
        self.name = name


def told(**offers: list[str]) -> dict[str, str]:
    """By the name that a model is told, the server and tool behind it."""
    found: Any = [(Server(name), Tool(tool, "", {})) for name, tools in offers.items() for tool in tools]
    return {name: f"{server.name}.{tool.name}" for name, (server, tool) in _named(found).items()}


LONG = "x" * LONGEST


@pytest.mark.parametrize(
    ("offers", "expected"),
    [
        ({"a": ["x"], "b": ["y"]}, {"x": "a.x", "y": "b.y"}),
        ({"a": ["x"], "b": ["x"]}, {"a_x": "a.x", "b_x": "b.x"}),
        ({"a": ["x"], "b": ["x"], "c": ["a_x"]}, {"a_x_2": "a.x", "b_x": "b.x", "a_x": "c.a_x"}),
        ({"c": ["a_x"], "a": ["x"], "b": ["x"]}, {"a_x": "c.a_x", "a_x_2": "a.x", "b_x": "b.x"}),
        ({"s": ["a.b", "a_b", "a-b"]}, {"s_a_b": "s.a.b", "s_a_b_2": "s.a_b", "a-b": "s.a-b"}),
        ({"s": ["ä", "ö", "ü"]}, {"s__": "s.ä", "s___2": "s.ö", "s___3": "s.ü"}),
        ({"s": [LONG + "1", LONG + "2"]}, {f"s_{LONG}"[:64]: f"s.{LONG}1", f"s_{LONG}"[:62] + "_2": f"s.{LONG}2"}),
        ({"a_b": ["c"], "a": ["b_c", "c"]}, {"b_c": "a.b_c", "a_b_c": "a_b.c", "a_c": "a.c"}),
        ({"s": ["", "tool"]}, {"s_": "s.", "s_tool": "s.tool"}),
    ],
)
def test_every_tool_has_a_name_of_its_own(offers: dict[str, list[str]], expected: dict[str, str]) -> None:
    assert told(**offers) == expected


@pytest.mark.parametrize("seed", range(50))
def test_no_tool_is_lost_however_names_collide(seed: int) -> None:
    dice = random.Random(seed)

    def word() -> str:
        return "".join(dice.choice("ab_.-é ") for _ in range(dice.choice([0, 1, 2, 3, 70])))

    offers = {name: sorted({word() for _ in range(9)}) for name in ("a", "b", "a_a", "b" * 60)}
    given = told(**offers)
    assert sorted(given.values()) == sorted(f"{server}.{tool}" for server, tools in offers.items() for tool in tools)
    assert all(len(name) <= LONGEST and re.fullmatch("[A-Za-z0-9_-]+", name) for name in given)


def test_calls_reach_the_tool_that_the_name_stands_for() -> None:
    toolbox = Toolbox({"s": spec("names", "a.b", "a_b"), "t": spec("names", "a_b", "s_a_b")})
    tools = AgentTools("agent", ["s", "t"], ToolLimits(), toolbox)

    async def use() -> dict[str, str]:
        await tools.open()
        try:
            rounds = ToolRounds("agent", tools, [], None)
            return {tools.place(name): (await rounds.make([ParsedCall(name, {})]))[0] for name in tools.names}
        finally:
            await tools.close()

    reached = anyio.run(use)
    assert reached == {"s.a.b": "a.b", "s.a_b": "a_b", "t.a_b": "a_b", "t.s_a_b": "s_a_b"}


OWNER = """
import sys, anyio
import mcp.client.stdio as stdio
from pathlib import Path
from cachegraph.agents.tools.server import ToolServer
from cachegraph.agents.tools.spec import CommandTools
server = ToolServer("raw", CommandTools(command=tuple(sys.argv[1:]), timeout=100.0), Path())
stdio.PROCESS_TERMINATION_TIMEOUT = 0.1  # the SDK's patience with a busy server is not what is tested
anyio.run(server.call, "go", {})
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux who runs")
@pytest.mark.parametrize("mode", ["hang", "stubborn", "family"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_busy_server_and_its_children_end_with_a_process_that_is_killed(
    mode: str, number: signal.Signals, tmp_path: Path
) -> None:
    started = tmp_path / "pids"
    command = [sys.executable, "-c", OWNER, sys.executable, PROGRAM, mode, str(started)]
    owner = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(started.exists)
        os.kill(owner.pid, number)
        owner.wait(60)
        pids = [int(pid) for pid in started.read_text().split()]
        assert len(pids) == (3 if mode == "family" else 1)
        wait_until(lambda: all(map(gone, pids)))
    finally:
        owner.kill()
        owner.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux who runs")
def test_a_server_whose_supervisor_is_killed_ends_too(tmp_path: Path) -> None:
    started = tmp_path / "pids"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, sys.executable, PROGRAM, "stubborn", str(started)], stderr=subprocess.DEVNULL
    )
    try:
        wait_until(started.exists)
        (pid,) = [int(pid) for pid in started.read_text().split()]
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert parent != owner.pid
        os.kill(parent, signal.SIGKILL)
        wait_until(lambda: gone(pid))
        owner.wait(60)
    finally:
        owner.kill()
        owner.wait()


def test_of_a_long_log_only_the_end_is_read() -> None:
    with _log_file() as log:
        os.write(log.fileno(), b"noise\n" * 100_000 + b"caf\xe9 is closed\n\n")
        assert _last_words(log) == "; its last output: 'caf\ufffd is closed'"


@pytest.mark.skipif(os.name != "posix", reason="the platform can't cut a file that is written to")
def test_a_program_that_logs_without_end_does_not_fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LOOKING", 0.01)
    monkeypatch.setattr(connection, "MAX_LOG", 1_000)

    async def log_on() -> None:
        with _log_file() as log, anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(connection._keep_short, log)
                os.write(log.fileno(), b"x" * 2_000)
                for _ in range(5_000):
                    if os.fstat(log.fileno()).st_size == 0:
                        break
                    await anyio.sleep(0.01)
                os.write(log.fileno(), b"bye\n")
                assert _last_words(log) == "; its last output: 'bye'"
                group.cancel_scope.cancel()

    anyio.run(log_on)


def test_a_server_that_writes_no_clean_json_is_understood() -> None:
    assert names("odd") == ["go"]


MESSAGE = '{"jsonrpc": "2.0", "id": 1, "result": {"text": "%s"}}'


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("\\ud83d", "\ufffd"),
        ("a\\ude00\\ud83db", "a\ufffd\ufffdb"),
        ("a\0b\x0c\x1b", "a\0b\x0c\x1b"),
        ("a\rb\tc", "a\rb\tc"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_an_unparsable_message_is_mended(written: str, read: str, mark: str) -> None:
    item = mended(_unparsable(mark + MESSAGE % written))
    assert item.message.result == {"text": read}


@pytest.mark.parametrize("line", ["starting", "", "{}", "[" * 10_000, MESSAGE % '"', '{"id": "\\ud83d"}', "9" * 9_000])
def test_a_line_that_is_no_message_stays_an_error(line: str) -> None:
    error = _unparsable(line)
    assert mended(error) is error


def _unparsable(line: str) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        importlib.import_module("mcp.types").jsonrpc_message_adapter.validate_json(line, by_name=False)
    return caught.value


def test_lines_that_are_no_messages_are_not_logged_to_the_terminal() -> None:
    code = "import logging, cachegraph.agents.tools.connection; logging.getLogger('mcp.client').error('noise')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stderr == ""
