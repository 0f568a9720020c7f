"""Scripted agents for tests, benchmarks and examples without a model.

They ship with the package, so that users can test their graphs as we do.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio

from cachegraph.channels.payload import Payload
from cachegraph.channels.peer import Peer
from cachegraph.common.surrogates import mend

from .base import FinishReason, Reply, Tokens, Turn

if TYPE_CHECKING:
    from cachegraph.channels.cache.sent_cache import SentCache

__all__ = ["ScriptedAgent", "scripted"]


class ScriptedAgent:
    """Replies by a script and records its turns.

    `reply` is a text or a function from the turn to one; by default the agent repeats what it received. It waits for
    `gate` before replying and sets `entered` when its turn begins; `fail` is raised instead of replying. `cache` is
    sent if an edge transfers one; `data`, a value or a function from the turn to one, accompanies the text.
    """

    def __init__(
        self,
        name: str,
        reply: str | Callable[[Turn], str] | None = None,
        *,
        gate: anyio.Event | None = None,
        entered: anyio.Event | None = None,
        fail: Exception | None = None,
        fail_open: Exception | None = None,
        cache: "Callable[[], SentCache] | None" = None,
        data: Any = None,
        finish_reason: FinishReason | None = "stop",
    ):
        self.name = name
        self.reply = reply
        self.gate = gate
        self.entered = entered
        self.fail = fail
        self.fail_open = fail_open
        self.cache = cache
        self.data = data
        self.finish_reason = finish_reason
        self.opened = 0
        self.closed = 0
        self.turns: list[dict[str, str]] = []  # by turn: the inputs, then the replies by sender

    async def open(self) -> None:
        self.opened += 1
        if self.fail_open is not None:
            raise self.fail_open

    def peer(self) -> Peer:
        return Peer(self.name, "script", why_no_cache=f"agent {self.name!r} follows a script and has no KV cache")

    async def turn(self, turn: Turn) -> Reply:
        heard = {delivery.payload.sender: await delivery.payload.read() for delivery in turn.deliveries}
        self.turns.append({**turn.inputs, **heard})
        if self.entered is not None:
            self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.fail is not None:
            raise self.fail
        text = mend(self._say(turn, heard))
        words = text.split(" ")
        if turn.on_text is not None:
            for i, word in enumerate(words):
                turn.on_text(word if i == 0 else f" {word}")
        data = self.data(turn) if callable(self.data) else self.data
        cache = self.cache() if self.cache is not None and turn.needs_cache else None
        payload = Payload(self.name, text, cache, data=data)
        return Reply(payload, tokens=Tokens(generated=len(words)), finish_reason=self.finish_reason)

    def _say(self, turn: Turn, heard: Mapping[str, str]) -> str:
        if callable(self.reply):
            return self.reply(turn)
        if self.reply is not None:
            return self.reply
        return f"{self.name}({', '.join(heard.values() or turn.inputs.values())})"

    async def close(self) -> None:
        self.closed += 1


def scripted(*agents: ScriptedAgent) -> Callable[..., ScriptedAgent]:
    """A factory for `Graph(..., create=scripted(...))`: these agents by name, and a default ScriptedAgent for any
    other.
    """
    known = {agent.name: agent for agent in agents}

    def create(name: str, *_: Any, **__: Any) -> ScriptedAgent:
        return known.get(name) or ScriptedAgent(name)

    return create
