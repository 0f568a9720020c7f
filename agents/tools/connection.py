"""Connection: an MCP client in its own thread, since runs and their event loops end before a tool server does."""

import asyncio
import errno
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, TypeVar, cast

import anyio

from cachegraph.errors import CachegraphError, ConfigError, ToolError

from ..http_client import http_client
from .content import Content, content_of
from .lenient_messages import LenientMessages
from .spec import CommandTools, ToolServerSpec, UrlTools

if TYPE_CHECKING:
    import mcp

try:
    import fcntl
except ImportError:  # not on Windows, where an open log can't be truncated
    fcntl = None  # type: ignore[assignment]

__all__ = ["Connection", "Tool"]

PAGES = 100  # of a list of tools
MAX_LOG = 16_000_000  # bytes kept on disk of a program's standard error
LAST_WORDS = 4_000  # bytes of it that are read
LOOKING = 5.0  # seconds between two checks of its size
STOPPING = 15.0  # seconds; the client itself kills a program that does not end within about 6
SUPERVISOR = Path(__file__).with_name("supervise.py")
INSTALL = "agents with `tools` need the MCP SDK; install it with: pip install 'cachegraph[tools]'"

T = TypeVar("T")

# The client logs every malformed line with a traceback; without a handler Python writes that to stderr.
logging.getLogger("mcp").addHandler(logging.NullHandler())


class Tool(NamedTuple):
    """A tool as its server describes it; `schema` is the JSON Schema of its arguments."""

    name: str
    description: str
    schema: dict[str, Any]


class Connection:
    """A client connected in its own thread until `stop`. `ready` reports success or the error."""

    _client: "mcp.Client"

    def __init__(self, name: str, spec: ToolServerSpec, folder: Path, allow_local: bool = True):
        self.ready: Future[None] = Future()
        self.lost = False
        self.process = os.getpid()
        self._name, self._spec, self._folder, self._allow_local = name, spec, folder, allow_local
        self._inside: Future[tuple[asyncio.AbstractEventLoop, _Stoppable]] = Future()
        self._asked: dict[Future[Any], Coroutine[Any, Any, Any]] = {}  # answers that callers wait for
        self._is_retired = False
        self._asking = threading.Lock()  # protects these
        self._thread = threading.Thread(target=self._run, name=f"tools-{name}", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine in this connection's event loop. Raises ToolError if the loop has ended."""
        with self._asking:
            try:
                # In a new context: the caller's states the kind of its own event loop.
                asked = Context().run(asyncio.run_coroutine_threadsafe, work, self._inside.result()[0])
            except RuntimeError:
                work.close()
                raise self._error("has ended") from None
            self._asked[asked] = work
        asked.add_done_callback(self._answered)
        return asked

    def retire(self) -> None:
        """End once nobody waits for an answer. Nobody may ask any more."""
        with self._asking:
            self._is_retired, is_idle = True, not self._asked
        if is_idle:
            self._request_stop()

    def stop(self) -> None:
        """Disconnect and wait for completion. Idempotent; call it from any other thread."""
        if self.process != os.getpid():  # a fork of the process that owns the thread and the program
            return
        self._request_stop()
        self._thread.join(STOPPING)

    def _request_stop(self) -> None:
        with suppress(CancelledError, RuntimeError):  # its loop never began, or has already ended
            loop, stoppable = self._inside.result()
            loop.call_soon_threadsafe(stoppable.stop)

    def _answered(self, asked: "Future[Any]") -> None:
        with self._asking:
            self._asked.pop(asked, None)
            is_over = self._is_retired and not self._asked
        if is_over:
            self._request_stop()

    # In the thread

    async def list_tools(self) -> list[Tool]:
        """List all pages of the server's tools, within the server's `timeout` in total."""
        found: list[Tool] = []
        cursor: str | None = None
        asked: set[str] = set()
        with self._answering():
            with anyio.move_on_after(self._spec.timeout):
                while len(asked) < PAGES:
                    page = await self._client.list_tools(cursor=cursor)
                    found += [Tool(tool.name, tool.description or "", tool.input_schema) for tool in page.tools]
                    cursor = page.next_cursor
                    if not cursor:  # some servers send an empty cursor on the last page
                        return found
                    if cursor in asked:
                        raise self._error(f"lists its tools without end: it gives the page {cursor[:50]!r} twice")
                    asked.add(cursor)
                raise self._error(f"lists its tools without end: there are more than {PAGES} pages")
            raise self._error(
                f"did not list its tools within its timeout of {self._spec.timeout:g} s ({len(found)} on "
                f"{len(asked) + 1} pages by then); set a longer `timeout`"
            )

    async def call(self, tool: str, arguments: dict[str, Any]) -> Content:
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED

        with self._answering():
            try:
                return content_of(await self._client.call_tool(tool, arguments))
            except MCPError as error:
                if error.code == CONNECTION_CLOSED:
                    raise
                return Content(error.message, error=True)  # a refused request: the model may correct it

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Treat any exception as a failure of the connection, which is then not used again."""
        try:
            yield
        except ToolError:
            self.lost = True
            raise
        except Exception as error:  # of the client, its transport, or an answer that it can't read
            self.lost = True
            raise self._error(f"does not answer: {_words(error)}") from error

    def _run(self) -> None:
        try:
            anyio.run(self._live)
        except BaseException as error:  # the thread's top level: pass it to the waiting task
            self._end(error)
        else:
            self._end(self._error("was stopped before it was ready"))

    async def _live(self) -> None:
        with anyio.CancelScope() as scope, self._opened_log() as log:
            stoppable = _Stoppable(scope)
            self._inside.set_result((asyncio.get_running_loop(), stoppable))
            try:
                with anyio.CancelScope() as starting:

                    def on_started() -> None:
                        starting.deadline = anyio.current_time() + self._spec.timeout
                        stoppable.begin()

                    client = _client(self._name, self._spec, self._folder, self._allow_local, log, on_started)
                    async with client as self._client:
                        starting.deadline = float("inf")
                        self.ready.set_result(None)
                        await _keep_short(log)
            except CachegraphError:
                raise
            except Exception as error:  # as above, or of starting the program
                raise self._error(f"can't be used: {_words(error)}{_last_words(log)}") from error
            if starting.cancelled_caught and not scope.cancel_called:
                raise self._error(f"did not answer within its timeout of {self._spec.timeout:g} s{_last_words(log)}")

    def _opened_log(self) -> TextIO:
        try:
            return _log_file()
        except OSError as error:
            raise self._error(f"can't be used: its log can't be written ({error.strerror or error})") from error

    def _end(self, error: BaseException) -> None:
        self.lost = True
        self._inside.cancel()  # no effect on a loop that has begun
        if not self.ready.done():
            self.ready.set_exception(error)
        with self._asking:
            asked = list(self._asked.items())
        for answer, work in asked:  # asked for as the loop ended, which no longer runs
            work.close()
            with suppress(InvalidStateError):  # it is there
                answer.set_exception(self._error("was stopped before it answered"))

    def _error(self, what: str) -> ToolError:
        return ToolError(f"the tool server {self._name!r} {what}")


class _Stoppable:
    """A scope that can't be cancelled before it has begun.

    A cancelled start of a program would leave its end to an event loop that has ended, which asyncio logs.
    """

    def __init__(self, scope: anyio.CancelScope):
        self._scope = scope
        self._begun = self._stopped = False

    def begin(self) -> None:
        self._begun = True
        if self._stopped:
            self._scope.cancel()

    def stop(self) -> None:
        self._stopped = True
        if self._begun:
            self._scope.cancel()


@asynccontextmanager
async def _client(
    name: str, spec: ToolServerSpec, folder: Path, allow_local: bool, log: TextIO, on_started: Callable[[], None]
) -> "AsyncIterator[mcp.Client]":
    """Connect. `on_started` is called once the program has started, or at once where there is none."""
    try:
        import mcp
    except ImportError as error:
        raise ConfigError(INSTALL) from error
    if isinstance(spec, CommandTools):
        env = {**_inherited(name, spec), **spec.env}
        program, *arguments = _supervised(spec.command, env, folder)
        started = mcp.StdioServerParameters(
            command=program, args=arguments, env=env, cwd=folder, encoding_error_handler="replace"
        )
        async with mcp.Client(_noting(mcp.stdio_client(started, errlog=log), on_started)) as client:
            yield client
        return
    on_started()
    async with _web_client(name, spec, allow_local) as client:
        yield client


@asynccontextmanager
async def _noting(transport: AbstractAsyncContextManager[Any], on_started: Callable[[], None]) -> AsyncIterator[Any]:
    async with transport as (messages, *others):
        on_started()
        yield LenientMessages(messages), *others


def _supervised(command: Sequence[str], env: Mapping[str, str], folder: Path) -> Sequence[str]:
    """Wrap the command in a supervisor that ends it and its children with this process, where supported.

    Raises FileNotFoundError if the program does not exist.
    """
    if os.name != "posix" or not sys.executable:
        return command
    program, *arguments = command
    if os.sep in program:
        found = shutil.which(folder / program)
    else:
        found = shutil.which(program, path=env.get("PATH") or os.environ.get("PATH"))
    if found is None:
        if (folder / program).is_file() and os.sep in program:
            raise PermissionError(errno.EACCES, "is not an executable file", program)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    program = str(Path(found).absolute()) if os.sep in program else program
    return [sys.executable, "-I", "-S", str(SUPERVISOR), str(os.getpid()), program, *arguments]


@asynccontextmanager
async def _web_client(name: str, spec: UrlTools, allow_local: bool) -> "AsyncIterator[mcp.Client]":
    import httpx2
    import mcp
    from mcp.client.streamable_http import streamable_http_client

    headers = {}
    if spec.api_key_env is not None:
        headers["Authorization"] = f"Bearer {_key(name, spec.api_key_env)}"
    timeout = httpx2.Timeout(spec.timeout, connect=10.0)
    async with (
        http_client(spec.url, allow_local, headers=headers, timeout=timeout) as http,
        mcp.Client(streamable_http_client(spec.url, http_client=http)) as client,
    ):
        yield client


def _inherited(name: str, spec: CommandTools) -> dict[str, str]:
    for variable in spec.inherit_env:
        if variable not in os.environ:
            raise ConfigError(f"the tool server {name!r} needs the environment variable {variable!r}, which is not set")
    return {variable: os.environ[variable] for variable in spec.inherit_env}


def _key(name: str, variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key and key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"the tool server {name!r} needs a key, and {variable!r} is not set or holds none")
    return key


def _words(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, FileNotFoundError):
        return f"there is no program {error.filename!r}; install it, or give its path"
    return " ".join(str(error).split()) or type(error).__name__


def _last_words(log: TextIO) -> str:
    """The end of the program's standard error."""
    size = os.fstat(log.fileno()).st_size
    log.buffer.seek(max(size - LAST_WORDS, 0))
    read = log.buffer.read(LAST_WORDS).decode("utf-8", "replace")
    lines = [line.strip() for line in read.splitlines() if line.strip()]
    return f"; its last output: {lines[-1][:300]!r}" if lines else ""


def _log_file() -> TextIO:
    """Open an anonymous file for a program's standard error; all writers append."""
    file = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115, the caller closes it
    if fcntl is not None:
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)
    return cast("TextIO", file)


async def _keep_short(log: TextIO) -> None:
    """Truncate a program's log before it fills the disk. Never returns."""
    while True:
        await anyio.sleep(LOOKING)
        if fcntl is not None and os.fstat(log.fileno()).st_size > MAX_LOG:
            os.ftruncate(log.fileno(), 0)
