"""The server process: socket, event loop, shutdown."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import anyio
import uvicorn

from cachegraph.common.addresses import known_addresses
from cachegraph.errors import ConfigError, InputError
from cachegraph.graph.graph import Graph

from .app import create_app
from .config import ServerConfig
from .http_protocol import BoundedProtocol
from .server_state import ServerState

__all__ = ["ServerProcess", "bind"]

SPARE = 5  # seconds after the grace period before connections are closed
TICK = 0.1  # seconds between uvicorn's ticks, which set the date of answers
POLL = 0.01  # seconds between looks at the connections of a server that stops


def bind(config: ServerConfig) -> socket.socket:
    """Bind the socket of a server.

    Raises ConfigError if it can't listen there, InputError if other machines could reach it without a key.
    """
    host = config.host.strip("[]")
    known = known_addresses(host)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            str(known[0]) if known else host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)  # named, or asyncio leaves small packets to wait for each other
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"the server can't listen on {config.host!r}, port {config.port}: {why}") from error
    if config.keys is None and not ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback:
        sock.close()
        raise InputError(
            f"a server on {config.host!r} can be reached from other machines, so it needs keys: give --api-key-file"
        )
    return sock


class ServerProcess:
    """Serves graphs until `stop` is called, from a signal handler or another thread."""

    def __init__(self, graphs: Sequence[Graph], config: ServerConfig):
        self._config = config
        self._failure: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.app = create_app(graphs, config, self._fail)
        self._state: ServerState = self.app.state.server
        self._server = _Server(
            uvicorn.Config(
                self.app,
                http=BoundedProtocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=65,  # longer than the clients' timeouts
                timeout_graceful_shutdown=round(config.grace) + SPARE,
            )
        )

    @property
    def names(self) -> list[str]:
        """Names of the recipes."""
        return [served.name for served in self.app.state.server.graphs]

    @staticmethod
    def address(sock: socket.socket) -> str:
        """The server's URL."""
        host, port = sock.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self, sock: socket.socket, started: Callable[[], None] = lambda: None) -> None:
        """Serve on this socket until `stop`. Raises the error if models fail to load."""
        with sock:
            anyio.run(self._serve, sock, started)
        if self._failure is not None:
            raise self._failure

    async def _serve(self, sock: socket.socket, started: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._server.on_started = started
        await self._server.serve([sock])

    def stop(self, *, at_once: bool = False) -> None:
        """Reject new requests and end when all runs have finished or the grace period is over, or at once."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has already ended
                self._loop.call_soon_threadsafe(self._stop, at_once)

    def _stop(self, at_once: bool) -> None:
        self._server.stop()
        self._state.queue.stop()
        if at_once:
            self._state.cancel()
        else:
            assert self._loop is not None
            self._loop.call_later(self._config.grace, self._state.cancel)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._stop(at_once=True)


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers, which also ends as soon as it can: uvicorn looks ten times a second."""

    on_started: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End, from the event loop's thread."""
        self.should_exit = True
        self._stopping.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_started()

    async def main_loop(self) -> None:
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 1
            with anyio.move_on_after(TICK):
                await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners and idle connections, wait for the others and their requests, and end the app."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with anyio.move_on_after(self.config.timeout_graceful_shutdown) as grace:
            await anyio.sleep(POLL)
            while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110  (uvicorn's sets)
                await anyio.sleep(POLL)
        if grace.cancelled_caught:
            for task in self.server_state.tasks:
                task.cancel()
        await self.lifespan.shutdown()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
