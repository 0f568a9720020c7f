"""ToolServer: a tool server of a graph, connected on first use, shared by agents, ended with the graph."""

import os
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from cachegraph.engine.batching.loop_bridge import Mailbox
from cachegraph.errors import ToolError

from .connection import Connection, Tool
from .content import Content
from .spec import ToolServerSpec

__all__ = ["ToolServer"]

T = TypeVar("T")


class ToolServer:
    """Connects on first use, and again if the connection was lost. Safe to use from any event loop.

    When it is closed or collected, or the process ends, it terminates its program, waits, and kills it if needed.
    """

    def __init__(self, name: str, spec: ToolServerSpec, folder: Path, allow_local: bool = True):
        self.name = name
        self._spec = spec
        self._allow_local = allow_local
        self._folder = folder
        self._connection: Connection | None = None
        self._lock = threading.Lock()  # guards _connection

    async def tools(self) -> list[Tool]:
        """List the server's tools. Raises ToolError or ConfigError."""
        connection = await self._connected()
        return await self._ask(connection, connection.list_tools())

    async def call(self, tool: str, arguments: dict[str, Any]) -> Content:
        """Call a tool. Raises ToolError if the server does not answer; the tool's own errors are content."""
        connection = await self._connected()
        try:
            with anyio.fail_after(self._spec.timeout):
                return await self._ask(connection, connection.call(tool, arguments))
        except TimeoutError:
            return Content(f"{tool} took longer than {self._spec.timeout:g} s and was given up", error=True)

    async def close(self) -> None:
        """End the connection and its program, if any. Idempotent."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(connection.stop)

    async def _connected(self) -> Connection:
        with self._lock:
            connection = self._connection
            is_own = connection is not None and connection.process == os.getpid()
            if connection is None or connection.lost or not is_own:
                if connection is not None and is_own:
                    connection.retire()  # other runs may wait for its answers
                connection = self._connection = Connection(self.name, self._spec, self._folder, self._allow_local)
                weakref.finalize(self, connection.stop)
        await _result(connection.ready)
        return connection

    async def _ask(self, connection: Connection, question: Coroutine[Any, Any, T]) -> T:
        asked = connection.start(question)
        try:
            return await _result(asked)
        except CancelledError:
            raise ToolError(f"the tool server {self.name!r} was stopped before it answered") from None
        finally:
            asked.cancel()


async def _result(future: "Future[T]") -> T:
    """Await work in another thread. Cancellation does not stop the work; that is the caller's task."""
    mailbox: Mailbox[None] = Mailbox()
    future.add_done_callback(lambda _: mailbox.post(None))
    async for _ in mailbox:
        break
    return future.result()
