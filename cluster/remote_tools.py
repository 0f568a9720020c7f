"""Tools of agents on a cluster: the model in a replica asks for calls, and the driver makes them, each of them once."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

from cachegraph.agents.tools.agent_tools import NamedTools, ToolSet
from cachegraph.agents.tools.content import Content
from cachegraph.agents.tools.parse_calls import ParsedCall
from cachegraph.agents.tools.spec import ToolLimits
from cachegraph.errors import RunError

__all__ = ["RemoteTools", "ToolAsked", "TurnCalls"]


@dataclass(frozen=True)
class ToolAsked:
    """A tool call that a replica waits for; the turn's calls are counted from 0."""

    number: int
    call: ParsedCall


class RemoteTools(ToolSet):
    """The replica's side: the tools by name, and a function that has the driver make a call."""

    def __init__(self, limits: ToolLimits, named: NamedTools, ask: Callable[[ParsedCall], Awaitable[Content]]):
        super().__init__(limits, named)
        self._ask = ask

    async def open(self) -> None:
        """The driver has opened them."""

    async def close(self) -> None:
        """The driver closes them."""

    async def call(self, call: ParsedCall) -> Content:
        return await self._ask(call)


class TurnCalls:
    """The driver's side of one turn. If its replica dies, the next one is told the results of the calls it repeats."""

    def __init__(self, agent: str, tools: ToolSet):
        self._agent = agent
        self._tools = tools
        self._made: list[tuple[ParsedCall, Content]] = []
        self._idle = anyio.Event()
        self._idle.set()

    async def make(self, asked: ToolAsked) -> Content:
        """Make a call, unless an earlier attempt has made it. Raises ToolError if the server is gone, or RunError."""
        if asked.number < len(self._made):
            call, content = self._made[asked.number]
            if call != asked.call:
                raise RunError(
                    f"a replica died while agent {self._agent!r} was at work with tools, and another one calls "
                    "different ones; run again"
                )
            return content
        self._idle = anyio.Event()
        try:
            content = await self._tools.call(asked.call)
            self._made.append((asked.call, content))
        finally:
            self._idle.set()
        return content

    async def settle(self) -> None:
        """Wait for the call that is being made, so that the next attempt knows its result."""
        await self._idle.wait()
