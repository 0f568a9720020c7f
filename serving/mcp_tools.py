"""Recipes as tools of a server of the Model Context Protocol, for coding assistants and other clients.

The server answers at once and loads the models meanwhile, since clients wait only seconds for its first answer. A call
before then waits for them.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread
import mcp_types as types
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError

from cachegraph import __version__
from cachegraph.agents.schema_threads import run_checks
from cachegraph.agents.tools.lenient_messages import LenientMessages
from cachegraph.common.abandoned_threads import run_or_abandon
from cachegraph.errors import CachegraphError, ConfigError, InputError, reason_of
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.inputs import check_inputs
from cachegraph.graph.recipe.spec import GraphSpec, InputSpec
from cachegraph.graph.run.events import AgentFinished, AgentStarted, Event, TextDelta
from cachegraph.graph.run.result import Result

from .hide_paths import hide_paths

__all__ = ["GraphTools", "serve_stdio"]

TYPES = {"string": "string", "number": "number", "boolean": "boolean", "list": "array", "object": "object"}
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
PAUSE = 1.0  # seconds between two notifications about a growing reply
SHOWN = 120  # characters of it
log = logging.getLogger("cachegraph.serving")


class GraphTools:
    """The tools of some graphs. Raises InputError for graphs that can't be tools."""

    def __init__(self, graphs: Sequence[Graph], concurrency: int = 16):
        self._graphs: dict[str, Graph] = {}
        for graph in graphs:
            name = NOT_IN_NAMES.sub("_", graph.spec.name)[:64]
            if name in self._graphs:
                raise InputError(f"two recipes make a tool {name!r}; rename one, or clients can't tell them apart")
            for agent, entry in graph.spec.agents.items():
                if entry.pauses:
                    raise InputError(
                        f"agent {agent!r} of {graph.spec.name!r} asks a person, and a tool can't wait for one"
                    )
            self._graphs[name] = graph
        self._limiter = anyio.CapacityLimiter(concurrency)
        self._loaded = anyio.Event()
        self._failure: Exception | None = None
        self.server: Server[Any] = Server(
            "cachegraph",
            version=__version__,
            on_list_tools=self._list,
            on_call_tool=self._call,
        )

    async def load(self, prepare: Callable[[], None] = lambda: None) -> None:
        """Load the models, after `prepare` in a thread. A failure is logged, and every call returns it."""
        try:
            await run_or_abandon(prepare)
            for graph in self._graphs.values():
                await graph.aopen()
        except Exception as error:  # a boundary: reported by every call
            self._failure = error
            log.error("the models can't be loaded: %s", error, exc_info=not isinstance(error, CachegraphError))
        self._loaded.set()

    async def close(self) -> None:
        """Unload the models."""
        for graph in self._graphs.values():
            await graph.aclose()

    async def _list(self, _: Any, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_tool(name, graph.spec) for name, graph in self._graphs.items()])

    async def _call(
        self, context: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        graph = self._graphs.get(params.name)
        if graph is None:
            raise MCPError(types.INVALID_PARAMS, f"there is no tool {params.name[:100]!r}")
        progress = _Progress(context)
        try:
            given = dict(params.arguments or {})
            inputs = await run_checks(partial(check_inputs, graph.spec.inputs, given, remedy=_by_argument))
            if not self._loaded.is_set():
                await progress.tell("loading models")
                await self._loaded.wait()
            if self._failure is not None:
                raise self._failure
            async with self._limiter, graph.stream(inputs) as stream:
                async for event in stream:
                    await progress.add(event)
        except CachegraphError as error:
            return types.CallToolResult(content=[_text(hide_paths(str(error)))], is_error=True)
        except Exception:  # a boundary: the server's log has the traceback
            log.exception("the tool %s failed", params.name)
            return types.CallToolResult(content=[_text("the tool failed; its server's log says why")], is_error=True)
        return _answer(stream.result)


def _by_argument(names: Sequence[str]) -> str:
    """The remedy for inputs that a call lacks."""
    return f"add {'the argument' if len(names) == 1 else 'the arguments'} {', '.join(map(repr, names))}"


async def serve_stdio(tools: GraphTools, prepare: Callable[[], None]) -> None:
    """Serve on stdin and stdout until stdin ends. Raises ConfigError if stdin is closed, CachegraphError if
    stdout can't be written.
    """
    if sys.stdin is None:
        raise ConfigError("the client's requests can't be read: stdin is closed")
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(tools.load, prepare)
            async with stdio_server() as (reader, writer):
                messages: Any = LenientMessages(reader)
                await tools.server.run(messages, writer, tools.server.create_initialization_options())
            group.cancel_scope.cancel()
    except* OSError as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise CachegraphError(f"the client's answers can't be written: {reason_of(error)}") from error
    finally:
        with anyio.CancelScope(shield=True):
            await tools.close()


class _Progress:
    """Progress notifications of one call. Clients that asked for none receive none."""

    def __init__(self, context: ServerRequestContext[Any, Any]):
        self._session = context.session
        self._count = 0
        self._written: dict[str, str] = {}
        self._next = 0.0

    async def tell(self, message: str) -> None:
        self._count += 1
        await self._session.report_progress(float(self._count), None, message)

    async def add(self, event: Event) -> None:
        if isinstance(event, AgentStarted):
            await self.tell(f"{event.agent} starts")
        elif isinstance(event, AgentFinished):
            self._written.pop(event.turn, None)
            await self.tell(f"{event.agent} has finished")
        elif isinstance(event, TextDelta):
            text = self._written[event.turn] = (self._written.get(event.turn, "") + event.text)[-SHOWN:]
            if monotonic() >= self._next:
                self._next = monotonic() + PAUSE
                await self.tell(f"{event.agent}: {' '.join(text.split())}")


def _tool(name: str, spec: GraphSpec) -> types.Tool:
    return types.Tool(
        name=name,
        title=spec.name,
        description=spec.description or f"Runs the graph {spec.name!r} of LLM agents and returns its reply.",
        input_schema={
            "type": "object",
            "properties": {key: _input(entry) for key, entry in spec.inputs.items()},
            "required": [key for key, entry in spec.inputs.items() if entry.is_required],
            "additionalProperties": False,
        },
    )


def _input(entry: InputSpec) -> dict[str, Any]:
    schema: dict[str, Any] = dict(entry.json_schema or {})
    if entry.kind in TYPES:
        schema.setdefault("type", TYPES[entry.kind])
    if entry.description:
        schema.setdefault("description", entry.description)
    if entry.default is not None:
        schema.setdefault("default", entry.default)
    return schema


def _answer(result: Result) -> types.CallToolResult:
    """Return the reply as text; several outputs, or data, also as structured content."""
    answer = result.agents.get(result.output)
    structured: Any = None
    if len(result.outputs) > 1:
        structured = dict(result.outputs)
    elif answer is not None and isinstance(answer.data, Mapping):
        structured = answer.data
    text = json.dumps(structured, ensure_ascii=False) if len(result.outputs) > 1 else result.text
    return types.CallToolResult(content=[_text(text)], structured_content=structured)


def _text(text: str) -> types.TextContent:
    return types.TextContent(type="text", text=text)
