"""Take an agent's turn, or one for each item of a list.

Every turn has an id: the agent's name, prefixed with the ids of the enclosing sub-graphs, followed by `#2` in the
second round of a loop and by `[3]` for the fourth item of a list.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import anyio

from cachegraph.agents.base import Delivery, Reply, ToolCall, Turn
from cachegraph.agents.prompt.filters import Value
from cachegraph.agents.prompt.prompt_view import PromptView
from cachegraph.agents.sessions.session import Recollection, Session
from cachegraph.channels.payload import Payload, most_layers
from cachegraph.common.json_text import all_finite
from cachegraph.common.run_all import run_all
from cachegraph.engine.batching.request_context import RunKey, join_run, request_context
from cachegraph.errors import RunError

from ..plan.wiring import ForEach, Node
from .events import AgentFinished, AgentPrefilled, AgentStarted, Event, TextDelta, ToolCalled
from .fan_out import item_error, join_replies, list_items
from .hooks import RunHooks
from .result import AgentResult
from .turn_log import TurnLog, note, take_turn

__all__ = ["Listener", "RunContext", "TokensLeft", "TurnExecutor", "record_reply"]

Listener = Callable[[Event], None]


class TokensLeft:
    """Count of the tokens that a run has written, against its limit; an inner run also counts against the outer one."""

    def __init__(self, most: int | None, outer: "TokensLeft | None" = None):
        self._most = most
        self._outer = outer
        self._written = 0

    def add(self, tokens: int) -> None:
        """Add written tokens."""
        self._written += tokens
        if self._outer is not None:
            self._outer.add(tokens)

    @property
    def left(self) -> int | None:
        """Number of tokens that may still be written; None: no limit."""
        own = None if self._most is None else self._most - self._written
        outer = None if self._outer is None else self._outer.left
        return min((limit for limit in (own, outer) if limit is not None), default=None)


@dataclass(frozen=True, eq=False)
class RunContext:
    """State that a run shares with its inner runs. `agents` and `turns` are prefixes of names and ids."""

    began: float
    listener: Listener | None = None
    turn_log: TurnLog | None = None
    conversation: Session | None = None  # continued by agents with a memory
    limiter: anyio.CapacityLimiter | None = None
    hooks: RunHooks | None = None
    agents: str = ""
    turns: str = ""
    spent: TokensLeft | None = None
    wants_cache: bool = False  # an edge of the outer graph takes the output's cache
    cache_layers: int | None = None  # number of its leading layers that such edges read; None: all
    generate: Mapping[str, Any] | None = None  # GenerateSpec fields that override those of the outputs

    def now(self) -> float:
        """Seconds since the outermost run began."""
        return perf_counter() - self.began


class TurnExecutor:
    """Takes the turns of one run."""

    def __init__(self, context: RunContext, inputs: Mapping[str, Any], outputs: Collection[int]):
        self._run = RunKey()  # for engines, which keep it as long as this run's caches, so it must hold no caches
        self._context = context
        self._outputs = outputs
        self._inputs = inputs

    def end(self) -> None:
        """Tell engines that the run has ended, so that they release its memory."""
        self._run.over = True

    async def take(
        self, node: Node, result: AgentResult, deliveries: Sequence[Delivery]
    ) -> tuple[Reply, list[AgentResult]]:
        """Take a turn and return its reply; for a fan-out, the joined reply and each item's result."""
        context, turn_id, hooks = self._context, result.turn, self._context.hooks
        changed = context.generate if node.index in self._outputs else None
        taken = [node.cache_layers] if node.needs_cache else []  # by the inner and the outer graph's edges
        if context.wants_cache and node.index in self._outputs:
            taken.append(context.cache_layers)
        turn = Turn(
            self._inputs,
            deliveries,
            node.needs_text,
            bool(taken),
            self._deltas(node, turn_id) if context.listener else None,
            partial(setattr, result, "prompt"),
            id=turn_id,
            control=hooks.controls.get(context.agents + node.name) if hooks else None,
            within=replace(context, generate=changed) if node.is_graph else None,
            memory=self._memory(node),
            on_tool=self._tool_calls(node, turn_id) if context.listener else None,
            generate=changed,
            on_prefill=self._prefills(node, turn_id) if context.listener else None,
            cache_layers=most_layers(taken),
        )
        if hooks is not None:
            hooks.turns[context.agents + node.name] = turn
            if hooks.skip == context.agents + node.name:
                return Reply(Payload(node.name, "", turn=turn_id)), []
        if node.for_each is not None:
            return await self._all_items(node, node.for_each, turn)
        return await self._one(node, turn), []

    async def _one(self, node: Node, turn: Turn) -> Reply:
        if self._context.limiter is None or node.is_graph:
            return await self._in_time(node, turn)
        async with self._context.limiter:
            return await self._in_time(node, turn)

    async def _in_time(self, node: Node, turn: Turn) -> Reply:
        if node.timeout is None:
            return await self._answer(node, turn)
        with anyio.move_on_after(node.timeout):
            return await self._answer(node, turn)
        raise RunError(f"it took longer than its timeout of {node.timeout:g} s (agents.{node.name}.timeout)")

    async def _answer(self, node: Node, turn: Turn) -> Reply:
        if self._context.spent is not None and (left := self._context.spent.left) is not None:
            turn = replace(turn, most_tokens=left)
        with request_context(join_run(self._run, node.depth, turn.needs_cache or turn.memory is not None)):
            if self._context.turn_log is None or node.is_graph:
                reply = await node.agent.turn(turn)
            else:
                reply = await take_turn(self._context.turn_log, turn.id, node.agent, turn)
            payload = reply.payload
            payload.turn = turn.id
            if not all_finite(payload.data):
                raise RunError(f"agent {node.name!r} replied with data that holds NaN or Infinity, which is not JSON")
            if self._context.spent is not None and not node.is_graph:
                self._context.spent.add(reply.tokens.generated)
            if node.needs_text and payload.text is None:
                await payload.read()
        return reply

    def _deltas(self, node: Node, turn_id: str) -> Callable[[str], None]:
        context, listener, name = self._context, self._context.listener, self._context.agents + node.name
        assert listener is not None
        return lambda text: listener(TextDelta(context.now(), name, text, turn=turn_id))

    def _tool_calls(self, node: Node, turn_id: str) -> Callable[[ToolCall], None]:
        context, listener, name = self._context, self._context.listener, self._context.agents + node.name
        assert listener is not None
        return lambda call: listener(ToolCalled(context.now(), name, call, turn=turn_id))

    def _prefills(self, node: Node, turn_id: str) -> Callable[[PromptView], None]:
        context, listener, name = self._context, self._context.listener, self._context.agents + node.name
        assert listener is not None
        return lambda prompt: listener(AgentPrefilled(context.now(), name, prompt.tokens, prompt, turn=turn_id))

    def _memory(self, node: Node) -> Recollection | None:
        conversation = self._context.conversation
        return conversation.of(self._context.agents + node.name, node.memory) if conversation and node.memory else None

    # fan-out

    async def _all_items(self, node: Node, for_each: ForEach, turn: Turn) -> tuple[Reply, list[AgentResult]]:
        items = await list_items(node, for_each, turn)

        async def take(number: int) -> tuple[Reply, AgentResult]:
            try:
                return await self._item(node, for_each, turn, number, items[number])
            except Exception as error:  # whatever an agent raises, with the item's number
                raise item_error(number, error) from error

        calls = [partial(take, number) for number in range(len(items))]
        taken = await run_all(calls, for_each.most, name=turn.id)
        return join_replies(node.name, turn.id, [reply for reply, _ in taken]), [result for _, result in taken]

    async def _item(
        self, node: Node, for_each: ForEach, turn: Turn, number: int, item: Any
    ) -> tuple[Reply, AgentResult]:
        context, turn_id, name = self._context, f"{turn.id}[{number}]", self._context.agents + node.name
        # A distinct origin per item: caches of several items may reach one receiver.
        value = Value(item, f"{for_each.name}[{turn_id}]") if isinstance(item, str) else item
        on_text = self._deltas(node, turn_id) if context.listener else None
        result = AgentResult("running", model=node.model, started=context.now(), turn=turn_id)
        inputs, on_prompt = {**turn.inputs, for_each.name: value}, partial(setattr, result, "prompt")
        on_tool = self._tool_calls(node, turn_id) if context.listener else None
        on_prefill = self._prefills(node, turn_id) if context.listener else None
        item_turn = replace(
            turn,
            inputs=inputs,
            id=turn_id,
            on_text=on_text,
            on_prompt=on_prompt,
            on_tool=on_tool,
            on_prefill=on_prefill,
        )
        if context.listener:
            context.listener(AgentStarted(context.now(), name, turn=turn_id))
        reply = await self._one(node, item_turn)
        record_reply(result, reply, context.now())
        if context.listener:
            context.listener(AgentFinished(context.now(), name, result, turn=turn_id, recalled=reply.recalled))
        if context.turn_log is not None and not node.is_graph:
            await note(context.turn_log, turn_id, result, reply)
        return reply, result


def record_reply(result: AgentResult, reply: Reply, now: float) -> None:
    """Copy a finished turn into its result."""
    result.status, result.prompt = "finished", None
    result.text = reply.payload.text
    result.data = reply.payload.data
    result.finish_reason = reply.finish_reason
    result.timing = timing = reply.timing
    result.tokens = reply.tokens
    result.tool_calls = reply.tool_calls
    result.memory = reply.memory
    result.inside = dict(reply.inside)
    timing.total = timing.total or now - (result.started or 0.0)
