"""AgentTools: the tools of one agent, and the execution of its calls."""

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain, count, groupby
from operator import attrgetter
from time import perf_counter
from typing import Any

from cachegraph.errors import RunError, ToolError

from ..base import ToolCall
from .connection import Tool
from .content import Content, cut
from .parse_calls import Heard, ParsedCall, hear
from .server import ToolServer
from .servers import Toolbox
from .spec import ToolLimits

__all__ = ["AgentTools", "NamedTools", "ToolRounds", "ToolSet", "results_by_round"]

LONGEST = 64  # longest tool name that chat APIs accept
HOW = (
    "You can call tools. To call one, reply with nothing but\n"
    '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>\n'
    "and you will be given its result. These are the tools, with the JSON Schema of their arguments:\n"
)


NamedTools = Mapping[str, tuple[str, Tool]]  # by the name that the model uses: the server's name, and the tool


class ToolSet(ABC):
    """An agent's tools, by the names that its model uses. Holds no state of a run."""

    def __init__(self, limits: ToolLimits, named: NamedTools | None = None):
        self.limits = limits
        self.named: NamedTools = named or {}

    @abstractmethod
    async def open(self) -> None:
        """Prepare for calls. Idempotent."""

    @abstractmethod
    async def close(self) -> None:
        """Release what `open` took. Idempotent."""

    @property
    def names(self) -> frozenset[str]:
        """The names that the model may call."""
        return frozenset(self.named)

    @property
    def schema(self) -> list[dict[str, Any]]:
        """The tools in the format of chat templates and chat APIs."""
        return [
            {"type": "function", "function": {"name": name, "description": tool.description, "parameters": tool.schema}}
            for name, (_, tool) in self.named.items()
        ]

    def in_words(self) -> str:
        """Describe the tools and their call format, for models whose chat template supports no tools."""
        return HOW + "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in self.schema)

    def place(self, name: str) -> str:
        """The tool's name in a recipe: server.tool."""
        if name not in self.named:
            return name
        server, tool = self.named[name]
        return f"{server}.{tool.name}"

    @abstractmethod
    async def call(self, call: ParsedCall) -> Content:
        """Execute one call. Raises ToolError if the server is gone; other failures become content for the model."""


class AgentTools(ToolSet):
    """The tools of servers beside this process."""

    def __init__(self, agent: str, wanted: Sequence[str], limits: ToolLimits, toolbox: Toolbox):
        super().__init__(limits)
        self._agent = agent
        self._wanted = wanted
        self._toolbox = toolbox
        self._tools: dict[str, tuple[ToolServer, Tool]] = {}

    async def open(self) -> None:
        """Connect to the servers and list their tools. Raises ToolError or ConfigError. Idempotent."""
        if self._tools:
            return
        wanted = {name.partition(".")[0] for name in self._wanted}
        servers = self._toolbox.take(self._agent, wanted)
        found: list[tuple[ToolServer, Tool]] = []
        for name, server in servers.items():
            offered = {tool.name: tool for tool in await server.tools()}
            found += [(server, tool) for tool in self._picked(name, offered)]
        tools = _named(found)
        self._toolbox.take(self._agent, wanted)  # again: a close may have given them back meanwhile
        self.named = {name: (server.name, tool) for name, (server, tool) in tools.items()}
        self._tools = tools  # last: a run that finds them uses the names at once

    async def close(self) -> None:
        self._tools, self.named = {}, {}
        await self._toolbox.give_back(self._agent)

    async def call(self, call: ParsedCall) -> Content:
        if call.problem is not None:
            return Content(call.problem, error=True)
        if call.tool not in self._tools:
            return Content(f"there is no tool {call.tool!r}; there is {', '.join(sorted(self._tools))}", error=True)
        server, tool = self._tools[call.tool]
        content = await server.call(tool.name, call.arguments)
        return content._replace(text=cut(content.text, self.limits.result_bytes))

    def _picked(self, server: str, offered: dict[str, Tool]) -> list[Tool]:
        if server in self._wanted:
            return list(offered.values())
        names = [name.partition(".")[2] for name in self._wanted if name.partition(".")[0] == server]
        for name in names:
            if name not in offered:
                offer = ", ".join(map(repr, offered)) or "none"
                raise ToolError(
                    f"agent {self._agent!r} wants the tool {name!r}, which the server {server!r} does not offer; "
                    f"it offers {offer}"
                )
        return [offered[name] for name in dict.fromkeys(names)]


class ToolRounds:
    """The calls and limits of one turn of an agent."""

    def __init__(self, agent: str, tools: ToolSet, made: list[ToolCall], on_call: Callable[[ToolCall], None] | None):
        self._agent = agent
        self._tools = tools
        self._made = made  # appended to as calls are made
        self._on_call = on_call
        self._rounds = 0

    def hear(self, text: str) -> Heard:
        """Split a reply into text and calls."""
        return hear(text, self._tools.names)

    async def make(self, calls: Sequence[ParsedCall]) -> list[str]:
        """Execute one reply's calls; returns their results in order. Raises RunError beyond the limits."""
        limits = self._tools.limits
        self._rounds += 1
        if self._rounds > limits.rounds:
            raise self._too_much("rounds", limits.rounds)
        if len(self._made) + len(calls) > limits.calls:
            raise self._too_much("calls", limits.calls)
        return [await self._one(call) for call in calls]

    async def _one(self, call: ParsedCall) -> str:
        began = perf_counter()
        content = await self._tools.call(call)
        seconds = perf_counter() - began
        place = self._tools.place(call.tool)
        made = ToolCall(place, call.arguments, content.text, content.error, seconds, self._rounds)
        self._made.append(made)
        if self._on_call is not None:
            self._on_call(made)
        return _told(made)

    def _too_much(self, limit: str, value: int) -> RunError:
        return RunError(
            f"agent {self._agent!r} calls tools instead of answering; its limit is {value} {limit} "
            f"(agents.{self._agent}.tool_limits.{limit})"
        )


def results_by_round(calls: Sequence[ToolCall]) -> list[list[str]]:
    """By round, the results of these calls as the model received them, in order."""
    return [[_told(call) for call in calls] for _, calls in groupby(calls, attrgetter("round"))]


def _told(call: ToolCall) -> str:
    return f"Error: {call.result}" if call.error else call.result


def _named(found: Sequence[tuple[ToolServer, Tool]]) -> dict[str, tuple[ToolServer, Tool]]:
    """Assign each tool a unique name that chat APIs accept, in the recipe's order.

    The tool's own name; prefixed with its server if several tools share it; numbered if that name is taken.
    """
    own = [_accepted(tool.name) for _, tool in found]
    times = Counter(own)
    taken = {name for name in own if times[name] == 1}
    named = {}
    for name, (server, tool) in zip(own, found, strict=True):
        if times[name] > 1:
            name = _free(_accepted(f"{server.name}_{tool.name}"), taken)
            taken.add(name)
        named[name] = (server, tool)
    return named


def _accepted(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:LONGEST] or "tool"


def _free(name: str, taken: Collection[str]) -> str:
    candidates = (f"{name[: LONGEST - len(str(n)) - 1]}_{n}" for n in count(2))
    return next(candidate for candidate in chain([name], candidates) if candidate not in taken)
