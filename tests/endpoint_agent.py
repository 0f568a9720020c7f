"""One agent behind an endpoint, for one turn: alone, or with a tool that adds."""

from collections.abc import Callable
from typing import Any

import anyio
from chat_server import Server

from cachegraph.agents.base import Delivery, Reply, Turn
from cachegraph.agents.endpoint.agent import EndpointAgent
from cachegraph.agents.spec import AgentSpec, EndpointSpec
from cachegraph.agents.tools.connection import Tool
from cachegraph.agents.tools.content import Content
from cachegraph.agents.tools.servers import Toolbox
from cachegraph.channels.payload import Payload, Route
from cachegraph.channels.spec import TextEdge

KEY = "sk-very-secret-0123456789"


async def say(
    server: Server,
    *,
    key: str | None = None,
    retries: int = 2,
    on_text: Callable[[str], None] | None = None,
    most_tokens: int | None = None,
    upstream: dict[str, str] | None = None,
    endpoint: dict[str, Any] | None = None,
    **spec: Any,
) -> Reply:
    place = {"base_url": server.url, "model": "big", "api_key_env": key}
    behind = EndpointSpec.model_validate({**place, **(endpoint or {})})
    texts = upstream or {}
    spec = {"retry": {"max_attempts": retries + 1, "backoff": 0.001}, **spec}
    agent_spec = AgentSpec.model_validate({"model": "m", "prompt": "Why, {{ name }}?", **spec})
    agent = EndpointAgent("x", agent_spec, behind, upstream=tuple(texts))
    await agent.open()
    deliveries = [
        Delivery(Route(TextEdge.model_validate({"from": name, "to": "x"}), "text"), Payload(name, text))
        for name, text in texts.items()
    ]
    with anyio.fail_after(60):
        reply = await agent.turn(Turn({"name": "Ann"}, deliveries, on_text=on_text, most_tokens=most_tokens))
    await agent.close()
    return reply


class Adder:
    """Stands in for a connected tool server."""

    name = "calc"

    async def tools(self) -> list[Tool]:
        add = Tool("add", "Adds.", {"type": "object", "properties": {"a": {}, "b": {}}})
        return [add, Tool("now", "The time.", {"type": "object"})]

    async def call(self, tool: str, arguments: dict[str, Any]) -> Content:
        return Content("noon" if tool == "now" else str(arguments["a"] + arguments["b"]))

    async def close(self) -> None: ...


async def with_tools(server: Server, *, most_tokens: int | None = None, **parts: Any) -> tuple[Reply, list[str]]:
    box = Toolbox()
    box._servers, box._users = {"calc": Adder()}, {"calc": set()}  # type: ignore[dict-item]
    spec = AgentSpec.model_validate({"model": "m", "prompt": "1+2?", "tools": ["calc"], **parts})
    agent = EndpointAgent("solver", spec, EndpointSpec(base_url=server.url, model="m"), toolbox=box)
    heard: list[str] = []
    await agent.open()
    try:
        return await agent.turn(Turn({}, on_text=heard.append, most_tokens=most_tokens)), heard
    finally:
        await agent.close()
