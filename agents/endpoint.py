"""An agent whose model answers behind an OpenAI-compatible endpoint: words in, words out, no KV cache."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from cachegraph.channels.base import Peer
from cachegraph.channels.message import EdgeReport, Message
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import ConfigError, RunError

from .base import Delivery, MemoryReport, Reply, Timing, Tokens, ToolCall, Turn
from .budget import within_budget
from .completions import Completion, CompletionsAPI
from .framing import Frame, plain, remembered
from .prompt import PromptTemplate, heard, readable
from .spec import AgentSpec, EndpointSpec, RetrySpec
from .structured import cut_short, parse_reply
from .tools.belt import Belt, Turns
from .tools.remote import complete_with_tools
from .tools.toolbox import Toolbox

__all__ = ["EndpointAgent"]


class EndpointAgent:
    """Renders its prompt, asks the endpoint, streams the answer. Nothing is open between two turns."""

    def __init__(
        self,
        name: str,
        spec: AgentSpec,
        endpoint: EndpointSpec,
        *,
        upstream: Sequence[str] = (),
        toolbox: Toolbox | None = None,
    ):
        self.name = name
        self._spec = spec
        self._endpoint = endpoint
        self._prompt = PromptTemplate(name, spec, upstream)
        self._retry = spec.retry or RetrySpec(max_attempts=endpoint.max_retries + 1)
        self._api: CompletionsAPI | None = None
        self._belt = Belt(name, spec.tools, spec.tool_limits, toolbox) if spec.tools and toolbox else None

    async def open(self) -> None:
        """Find the key, connect to the tools. Raises ConfigError where the key's variable is missing, or ToolError."""
        key = None if self._endpoint.api_key_env is None else self._key(self._endpoint.api_key_env)
        self._api = CompletionsAPI(self.name, self._endpoint.base_url, key, self._retry)
        if self._belt is not None:
            await self._belt.open()

    def peer(self) -> Peer:
        why = f"agent {self.name!r} speaks through an endpoint, which gives no access to its KV cache"
        return Peer(self.name, self._endpoint.model, why_no_cache=why)

    async def turn(self, turn: Turn) -> Reply:
        """Take one turn. Raises ModelError if the endpoint does not answer."""
        begin = perf_counter()
        own = self._prompt.messages({**turn.inputs, **await heard(turn)})
        past = turn.memory.history(None, _about_tokens) if turn.memory is not None else []
        framed = Frame([plain(role, text) for role, text in past]).around(own)
        if turn.on_prompt is not None:
            turn.on_prompt(readable(framed))
        messages: list[dict[str, Any]] = [{"role": message.role, "content": message.content.text} for message in framed]
        edges = {delivery.message.sender: _report(delivery) for delivery in turn.deliveries}
        if self._spec.generate.max_new_tokens == 0:
            text = messages[-1]["content"]
            return Reply(Message(self.name, text), Timing(total=perf_counter() - begin), edges=edges)
        ask = partial(self._ask, within_budget(self._spec.generate, turn))
        sent = perf_counter()
        calls: list[ToolCall] = []
        if self._belt is None:
            said = await ask(messages, turn.on_text)
        else:
            turns = Turns(self.name, self._belt, calls, turn.on_tool)
            said = await complete_with_tools(ask, messages, turns, turn.on_text)
        end = perf_counter()
        first = said.first_piece or end
        timing = Timing(prefill=first - sent, decode=end - first, first_token=first - begin, total=end - begin)
        tokens = Tokens(prefilled=said.prompt_tokens, generated=said.completion_tokens)
        report, kept = None, None
        if turn.memory is not None:
            report, kept = MemoryReport(turn.memory.told), remembered(own)
            turn.memory.add(kept, said.text)
        message = Message(self.name, said.text, data=self._data(said))
        return Reply(message, timing, tokens, edges, tool_calls=calls, memory=report, remembered=kept)

    async def close(self) -> None:
        self._api = None
        if self._belt is not None:
            await self._belt.close()

    async def _ask(
        self, spec: GenerateSpec, messages: list[dict[str, Any]], on_text: Callable[[str], None] | None
    ) -> Completion:
        if self._api is None:
            raise RunError(f"agent {self.name!r} is not open; await its open() first")
        return await self._api.complete(self._request(messages, spec), on_text)

    def _request(self, messages: list[dict[str, Any]], spec: GenerateSpec) -> dict[str, Any]:
        usual = GenerateSpec()
        host = urlsplit(self._endpoint.base_url).hostname
        body = {
            "model": self._endpoint.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": spec.temperature,
            # Its inventor has renamed this one; whoever is compatible with it knows the old name.
            "max_completion_tokens" if host == "api.openai.com" else "max_tokens": spec.max_new_tokens,
        }
        if self._belt is not None:
            body["tools"] = self._belt.schema
        optional = {
            "top_p": "top_p",
            "stop": "stop",
            "seed": "seed",
            # no part of the original API, and known to most servers that run open models
            "top_k": "top_k",
            "min_p": "min_p",
            "repetition_penalty": "repetition_penalty",
            "min_new_tokens": "min_tokens",
            "ignore_eos": "ignore_eos",
        }
        for ours, theirs in optional.items():
            if getattr(spec, ours) != getattr(usual, ours):
                body[theirs] = getattr(spec, ours)
        if spec.json_schema is not None:
            named = {"name": self.name[:64], "schema": spec.json_schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body

    def _data(self, said: Completion) -> Any:
        """The reply as a JSON value, where it has to be one. A server may have ignored the schema."""
        spec = self._spec.generate
        if spec.json_schema is None:
            return None
        if said.finish == "length":
            raise cut_short(self.name, spec.max_new_tokens, "length")
        return parse_reply(self.name, said.text, spec.json_schema)

    def _key(self, variable: str) -> str:
        host = urlsplit(self._endpoint.base_url).hostname
        key = os.environ.get(variable, "").strip()
        if not key:
            raise ConfigError(
                f"agent {self.name!r} needs a key for {host!r}, and the environment variable {variable!r} is not set"
            )
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError(f"the environment variable {variable!r} holds no key: it has characters that no key has")
        return key


def _about_tokens(text: str) -> int:
    """An endpoint's tokenizer is its own; four characters a token is what most come to."""
    return len(text) // 4


def _report(delivery: Delivery) -> EdgeReport:
    route = delivery.route
    size = len((delivery.message.text or "").encode())
    return EdgeReport(route.edge.channel, route.used, route.fallback_reason, bytes=size)
