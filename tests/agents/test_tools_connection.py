"""Connections to tool servers that end while runs ask them. The client is a stand-in, so no program is started."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from waiting import wait_until

from cachegraph.agents.tools import connection as connections
from cachegraph.agents.tools.connection import Connection, Tool
from cachegraph.agents.tools.server import ToolServer
from cachegraph.agents.tools.spec import CommandTools
from cachegraph.errors import ToolError

SPEC = CommandTools(command=("program",), timeout=60.0)


class Client:
    """Lists no tools, once `answers` is set. It fails if it `fails`."""

    def __init__(self) -> None:
        self.answers, self.fails, self.asked = threading.Event(), False, 0

    async def list_tools(self, cursor: str | None) -> Any:
        self.asked += 1
        if self.fails:
            raise ValueError("this is no list")
        while not self.answers.is_set():  # noqa: ASYNC110  (the test's thread sets it)
            await anyio.sleep(0.005)
        return SimpleNamespace(tools=[], next_cursor=None)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """The client of every connection."""
    client = Client()

    @asynccontextmanager
    async def connect(*parts: Any) -> AsyncIterator[Client]:
        begun = parts[-1]
        begun()
        yield client

    monkeypatch.setattr(connections, "_client", connect)
    return client


def test_who_asks_a_server_as_its_connection_ends_gets_an_error(client: Client) -> None:
    asked = list[Future[list[Tool]]]()

    class AskedAtItsEnd(Connection):
        async def _live(self) -> None:
            loop = asyncio.get_running_loop()
            close = loop.close

            def close_after_a_question() -> None:
                asked.append(self.start(self.list_tools()))
                close()

            loop.close = close_after_a_question  # type: ignore[method-assign]
            await super()._live()

    connection = AskedAtItsEnd("calc", SPEC, Path())
    connection.ready.result(60)
    connection.stop()
    with pytest.raises(ToolError, match="the tool server 'calc' was stopped before it answered"):
        asked[0].result(60)
    late = connection.list_tools()
    with pytest.raises(ToolError, match="the tool server 'calc' has ended"):
        connection.start(late)


def test_a_connection_that_never_began_says_why_and_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(connections, "_log_file", fail)
    connection = Connection("calc", SPEC, Path())
    with pytest.raises(ToolError, match="'calc' can't be used: its log can't be written .No space left on device"):
        connection.ready.result(60)
    stops = threading.Thread(target=connection.stop, daemon=True)
    stops.start()
    stops.join(60)
    assert not stops.is_alive()


def test_a_lost_connection_ends_when_no_run_waits_for_its_answers(client: Client) -> None:
    server, listed = ToolServer("calc", SPEC, Path()), list[object]()
    waits = threading.Thread(target=lambda: listed.append(anyio.run(server.tools)))
    waits.start()
    wait_until(lambda: client.asked == 1)
    first = server._connection
    assert first is not None
    client.fails = True
    with pytest.raises(ToolError, match="does not answer: this is no list"):
        anyio.run(server.tools)
    client.fails = False
    again = threading.Thread(target=lambda: listed.append(anyio.run(server.tools)))
    again.start()
    wait_until(lambda: client.asked == 3)
    assert server._connection is not first
    assert first._thread.is_alive()
    client.answers.set()
    waits.join(60)
    again.join(60)
    assert listed == [[], []]
    wait_until(lambda: not first._thread.is_alive())
    anyio.run(server.close)
