"""EndpointAgent: an agent whose model answers behind an OpenAI-compatible endpoint. Text only, no KV cache."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

from cachegraph.channels.payload import EdgeReport, Payload
from cachegraph.channels.peer import Peer
from cachegraph.errors import RunError

from ..base import CLOSED, Delivery, MemoryReport, Reply, Timing, Tokens, ToolCall, Turn
from ..prompt.chat_context import Frame, plain, remembered
from ..prompt.prompt import PromptTemplate, read_texts, readable
from ..prompt.prompt_view import MessagesView
from ..prompt.render_threads import TextWork
from ..run_settings import with_settings
from ..schema_threads import run_checks
from ..spec import AgentSpec, EndpointSpec, RetrySpec
from ..structured_output import cut_short, parse_reply
from ..token_budget import within_budget
from ..tools.agent_tools import AgentTools, ToolRounds
from ..tools.servers import Toolbox
from .completion import Completion
from .empty_reply import why_empty
from .request import body_of, secrets_of
from .retrying_client import CompletionsAPI
from .tool_loop import complete_with_tools

__all__ = ["EndpointAgent"]


class EndpointAgent:
    """Renders its prompt, requests a completion and streams it. No connection stays open between turns."""

    def __init__(
        self,
        name: str,
        spec: AgentSpec,
        endpoint: EndpointSpec,
        *,
        upstream: Sequence[str] = (),
        toolbox: Toolbox | None = None,
        allow_local: bool = True,
    ):
        self.name = name
        self._spec = spec
        self._endpoint = endpoint
        self._allow_local = allow_local
        self._prompt = PromptTemplate(name, spec, upstream)
        self._retry = spec.retry or RetrySpec(max_attempts=endpoint.max_retries + 1)
        self._api: CompletionsAPI | None = None
        self._tools = AgentTools(name, spec.tools, spec.tool_limits, toolbox) if spec.tools and toolbox else None

    async def open(self) -> None:
        """Read the API key and connect to the tools. Raises ConfigError if a variable is missing, or ToolError."""
        secrets = secrets_of(self.name, self._endpoint)
        self._api = CompletionsAPI(
            self.name, self._endpoint.base_url, secrets, self._retry, allow_local=self._allow_local
        )
        if self._tools is not None:
            await self._tools.open()

    def peer(self) -> Peer:
        why = f"agent {self.name!r} speaks through an endpoint, which gives no access to its KV cache"
        return Peer(self.name, self._endpoint.model, why_no_cache=why)

    async def turn(self, turn: Turn) -> Reply:
        """Take one turn. Raises ModelError if the endpoint does not answer."""
        begin = perf_counter()
        own = await self._prompt.messages_in_thread({**turn.inputs, **await read_texts(turn)}, TextWork())
        past = turn.memory.history(None, _about_tokens) if turn.memory is not None else []
        framed = Frame([plain(role, text) for role, text in past]).around(own)
        if turn.on_prompt is not None:
            turn.on_prompt(readable(framed))
        if turn.on_prefill is not None:
            turn.on_prefill(MessagesView(framed))
        messages: list[dict[str, Any]] = [{"role": message.role, "content": message.content.text} for message in framed]
        edges = {delivery.payload.sender: _report(delivery) for delivery in turn.deliveries}
        if self._spec.generate.max_new_tokens == 0:
            text = messages[-1]["content"]
            return Reply(Payload(self.name, text), Timing(total=perf_counter() - begin), edges=edges)
        ask = partial(self._ask, turn)
        sent = perf_counter()
        calls: list[ToolCall] = []
        if self._tools is None:
            said = await ask(messages, turn.on_text, 0)
        else:
            rounds = ToolRounds(self.name, self._tools, calls, turn.on_tool)
            said = await complete_with_tools(ask, messages, rounds, turn.on_text)
        self._check(said, turn)
        data = await self._data(said, turn)
        end = perf_counter()
        first = said.first_piece or end
        timing = Timing(prefill=first - sent, decode=end - first, first_token=first - begin, total=end - begin)
        tokens = Tokens(prefilled=said.prompt_tokens, generated=said.completion_tokens)
        report, kept = None, None
        if turn.memory is not None:
            report, kept = MemoryReport(turn.memory.told), remembered(own)
            turn.memory.add(kept, said.text)
        payload = Payload(self.name, said.text, data=data)
        return Reply(
            payload,
            timing,
            tokens,
            edges,
            tool_calls=calls,
            memory=report,
            remembered=kept,
            finish_reason=said.finish,
        )

    async def close(self) -> None:
        self._api = None
        if self._tools is not None:
            await self._tools.close()

    async def _ask(
        self, turn: Turn, messages: list[dict[str, Any]], on_text: Callable[[str], None] | None, written: int
    ) -> Completion:
        """Request one completion, in a turn in which `written` tokens were decoded before."""
        if self._api is None:
            raise RunError(CLOSED.format(repr(self.name)))
        left = None if turn.most_tokens is None else turn.most_tokens - written
        spec = within_budget(with_settings(self._spec, turn).generate, replace(turn, most_tokens=left))
        tools = self._tools.schema if self._tools is not None else None
        return await self._api.complete(body_of(self.name, self._endpoint, messages, spec, tools), on_text)

    def _check(self, said: Completion, turn: Turn) -> None:
        """Raise ModelError if a reply is empty or its JSON is incomplete."""
        if self._api is None:
            raise RunError(CLOSED.format(repr(self.name)))
        spec = with_settings(self._spec, turn).generate
        most = spec.max_new_tokens if turn.most_tokens is None else min(spec.max_new_tokens, turn.most_tokens)
        if not said.text.strip():
            raise self._api.error(self._api.excerpt(why_empty(said, most, may_stop=bool(spec.stop))))
        if spec.json_schema is None:
            return
        if said.finish == "length":
            raise cut_short(self.name, most, "length")
        if said.finish in ("content_filter", "refusal"):
            raise self._api.error(f"broke off inside its JSON (finish_reason {said.finish!r})")

    async def _data(self, said: Completion, turn: Turn) -> Any:
        """Parse the reply as a JSON value if a schema requires one. The server may have ignored the schema."""
        spec = with_settings(self._spec, turn).generate
        if spec.json_schema is None:
            return None
        return await run_checks(partial(parse_reply, self.name, said.text, spec.json_schema), len(said.text))


def _about_tokens(text: str) -> int:
    """Estimate the number of tokens at four characters each, since the endpoint's tokenizer is unknown."""
    return len(text) // 4


def _report(delivery: Delivery) -> EdgeReport:
    report = EdgeReport.of(delivery.route)
    report.bytes = len((delivery.payload.text or "").encode())
    return report
