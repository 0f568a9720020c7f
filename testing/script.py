"""Agents whose replies a test sets by name, and which record their prompts."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from cachegraph.agents.base import Agent, Reply, Turn
from cachegraph.agents.create import Create
from cachegraph.agents.prompt.prompt import PromptTemplate
from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.agents.spec import AgentSpec, EndpointSpec
from cachegraph.agents.tools.servers import Toolbox
from cachegraph.channels.peer import Peer
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import InputError

__all__ = ["Say", "Script", "Told"]


@dataclass(frozen=True)
class Say:
    """A reply with options: structured `data`, a delay of `after` seconds, or an `error` instead of a reply."""

    text: str = ""
    data: Any = None
    after: float = 0.0
    error: Exception | None = None


@dataclass(frozen=True)
class Told:
    """What an agent received for one turn: its rendered prompt, and by name the inputs and upstream replies."""

    turn: str
    prompt: str
    system: str | None
    values: Mapping[str, Any]


Line = str | dict[str, Any] | Exception | Say | Callable[[Told], Any]


class Script:
    """Replies of all agents of a graph; pass it as `create=` to the graph.

    A line is a text, a mapping (structured data, with its JSON as text), an exception, a `Say`, or a function from a
    `Told` to one of these. A list has one line per turn. `otherwise` creates the agents that have no line;
    without it they are an error. `told` holds by agent what each turn received.
    """

    def __init__(
        self,
        lines: Mapping[str, Line | Sequence[Line]] | None = None,
        /,
        *,
        otherwise: Create | None = None,
        **named: Any,
    ):
        self._lines = {**(lines or {}), **named}
        self._otherwise = otherwise
        self.told: dict[str, list[Told]] = {name: [] for name in self._lines}

    def __call__(
        self,
        name: str,
        spec: AgentSpec,
        model: str | ModelSpec | EndpointSpec,
        folder: Path,
        *,
        inputs: Sequence[str],
        upstream: Sequence[str],
        toolbox: Toolbox | None = None,
    ) -> Agent:
        if name in self._lines:
            return _Actor(self, name, PromptTemplate(name, spec, upstream))
        if self._otherwise is None:
            known = ", ".join(map(repr, self._lines)) or "nobody"
            raise InputError(f"agent {name!r} has no line in the script, which has lines for {known}; give it one")
        options: dict[str, Any] = {} if toolbox is None else {"toolbox": toolbox}
        return self._otherwise(name, spec, model, folder, inputs=inputs, upstream=upstream, **options)

    def line(self, received: Told, agent: str) -> Say:
        """Return the agent's next reply. Raises InputError if the script has no more lines for it."""
        line = self._lines[agent]
        if isinstance(line, list | tuple):
            turn = len(self.told[agent])
            if turn > len(line):
                raise InputError(f"the script has {len(line)} lines for agent {agent!r}, and this is its turn {turn}")
            line = line[turn - 1]
        if callable(line):
            line = line(received)
        if isinstance(line, Exception):
            return Say(error=line)
        if isinstance(line, Mapping):
            return Say(json.dumps(line, ensure_ascii=False), line)
        return line if isinstance(line, Say) else Say(str(line))


class _Actor:
    """Agent that follows a script. Safe in concurrent runs: each turn creates its own scripted agent."""

    def __init__(self, script: Script, name: str, template: PromptTemplate):
        self.name = name
        self._script = script
        self._template = template

    async def open(self) -> None: ...

    def peer(self) -> Peer:
        return ScriptedAgent(self.name).peer()

    async def turn(self, turn: Turn) -> Reply:
        received = await self._told(turn)
        self._script.told[self.name].append(received)
        reply = self._script.line(received, self.name)
        if reply.after:
            await anyio.sleep(reply.after)
        return await ScriptedAgent(self.name, reply.text, data=reply.data, fail=reply.error).turn(turn)

    async def close(self) -> None: ...

    async def _told(self, turn: Turn) -> Told:
        heard = {delivery.payload.sender: await delivery.payload.read() for delivery in turn.deliveries}
        prompts = self._template.messages({**turn.inputs, **heard})
        contents = {message.role: message.content.text for message in prompts}
        return Told(turn.id or self.name, contents.get("user", ""), contents.get("system"), {**turn.inputs, **heard})
