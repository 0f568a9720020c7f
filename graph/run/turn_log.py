"""The protocol that makes finished turns durable, so that resuming a run never repeats one.

A run queries its log before a turn and records the turn after it. A recalled turn takes its text from the log. The log
has no KV cache: it is recomputed from the text when a receiver needs it. Independent of the store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from cachegraph.agents.base import Agent, MemoryReport, Paused, Rebuilder, Reply, Timing, Tokens, ToolCall, Turn
from cachegraph.channels.payload import EdgeReport, Payload
from cachegraph.common.surrogates import mend_json
from cachegraph.errors import RunError, library_errors

from .result import AgentResult

if TYPE_CHECKING:
    from cachegraph.channels.cache.sent_cache import SentCache

__all__ = ["RecordedTurn", "TurnLog", "note", "take_turn"]


@dataclass(frozen=True)
class RecordedTurn:
    """One finished turn as plain values, ready for JSON."""

    text: str | None
    data: Any = None
    ids: Sequence[int] = ()  # the reply's token ids, if an edge sends its cache
    agent: Mapping[str, Any] = field(default_factory=dict)  # AgentResult fields of this turn
    edges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # EdgeReports by sender
    remembered: Sequence[Sequence[str]] | None = None  # (role, content) pairs for the run's session


class TurnLog(Protocol):
    """Durable log of a run's turns. Runs without one pay nothing."""

    @property
    def run(self) -> str:
        """The run's id."""

    def recall(self, turn: str) -> RecordedTurn | None:
        """Return the record of this turn, or None if it has not finished."""

    async def record(self, turn: str, recorded: RecordedTurn) -> None:
        """Record a finished turn; the turn is durable when this returns."""

    def asked(self, turn: str, question: str) -> None:
        """Note that this turn waits for a person; `recall` later returns the answer as its reply."""


async def take_turn(turn_log: TurnLog | None, name: str, agent: Agent, turn: Turn) -> Reply:
    """Return the agent's reply: from the log if it has this turn (`reply.recalled`), else by taking the turn."""
    if turn_log is None:
        return await agent.turn(turn)
    recorded = turn_log.recall(name)
    if recorded is not None:
        recorded = _mended(recorded)
        damaged = f"what run {turn_log.run!r} recorded of turn {name!r} is damaged"
        with library_errors(lambda why: RunError(f"{damaged} ({why}); remove that run and begin a new one")):
            return _stand_in(agent, _remembered(turn, recorded, f"{turn_log.run}/{name}"), recorded)
    await _restore(turn)
    try:
        reply = await agent.turn(turn)
    except Paused as pause:
        turn_log.asked(name, pause.question)
        raise
    if turn.memory is not None and reply.remembered is not None:
        turn.memory.sign(f"{turn_log.run}/{name}")
    return reply


async def note(turn_log: TurnLog, name: str, result: AgentResult, reply: Reply) -> None:
    """Record a finished turn, unless it was recalled."""
    if reply.recalled:
        return
    # Avoid dataclasses.asdict, which deep-copies every value: this runs for each turn.
    edges = {sender: dict(vars(report)) for sender, report in reply.edges.items()}
    # Omit text and data, which the payload has, and earlier turns, which are already recorded.
    agent: dict[str, Any] = {key: getattr(result, key) for key in ("status", "model", "started", "turn")}
    agent |= {"timing": dict(vars(result.timing)), "tokens": dict(vars(result.tokens))}
    if result.finish_reason is not None:
        agent["finish_reason"] = result.finish_reason
    if result.tool_calls:
        agent["tool_calls"] = [dict(vars(call)) for call in result.tool_calls]
    if result.memory is not None:
        agent["memory"] = dict(vars(result.memory))
    payload = reply.payload
    recorded = RecordedTurn(payload.text, payload.data, tuple(reply.ids), agent, edges, reply.remembered)
    await turn_log.record(name, recorded)


def _mended(recorded: RecordedTurn) -> RecordedTurn:
    """Without half characters, which a store keeps and nothing can encode."""
    return RecordedTurn(**{name: mend_json(value) for name, value in vars(recorded).items()})


def _stand_in(agent: Agent, turn: Turn, recorded: RecordedTurn) -> Reply:
    calls = [ToolCall(**call) for call in recorded.agent.get("tool_calls") or ()]
    lost = _Lost(agent, turn, recorded, calls)
    payload = Payload(agent.name, recorded.text, data=recorded.data, write=lost.write)
    if turn.needs_cache and isinstance(agent, Rebuilder):
        payload.rebuild, payload.recover = lost.rebuild, lost.recover
    timing, tokens = (recorded.agent.get(key) or {} for key in ("timing", "tokens"))
    edges = {sender: _report(report) for sender, report in recorded.edges.items()}
    memory = MemoryReport(**recorded.agent["memory"]) if recorded.agent.get("memory") else None
    return Reply(
        payload,
        Timing(**timing),
        Tokens(**tokens),
        edges,
        recalled=True,
        tool_calls=calls,
        memory=memory,
        finish_reason=recorded.agent.get("finish_reason"),
    )


def _remembered(turn: Turn, recorded: RecordedTurn, mark: str) -> Turn:
    """Add a recalled turn to the session, once; return the turn with the session's earlier content."""
    memory = turn.memory
    if memory is None or recorded.remembered is None:
        return turn
    before = memory.before(mark)
    if not memory.has(mark):
        memory.add([(role, content) for role, content in recorded.remembered], recorded.text or "")
        memory.sign(mark)
    return replace(turn, memory=before)


def _report(plain: Mapping[str, Any]) -> EdgeReport:
    report = EdgeReport(**plain)
    # JSON has only string keys, and no tuples.
    report.residuals = {int(layer): (keys, values) for layer, (keys, values) in report.residuals.items()}
    return report


async def _restore(turn: Turn) -> None:
    """Recompute the lost caches that this turn reads."""
    for delivery in turn.deliveries:
        if delivery.route.needs_cache:
            await delivery.payload.restore()


class _Lost:
    """Recomputes what a recalled turn lacks: its cache, and a reply that nobody had requested."""

    def __init__(self, agent: Agent, turn: Turn, recorded: RecordedTurn, calls: Sequence[ToolCall]):
        self._agent = agent
        self._calls = calls
        self._turn = replace(turn, on_text=None, on_prefill=None)
        self._recorded = recorded
        self._busy = anyio.Lock()
        self._cache: SentCache | None = None

    async def rebuild(self) -> "SentCache":
        async with self._busy:  # several receivers may request it concurrently
            if self._cache is None:
                self._cache = await self.recover()
        return self._cache

    async def recover(self) -> "SentCache":
        """Rebuild the cache for one reader, because the process that held it has died or has no room for it."""
        self._cache = None
        assert isinstance(self._agent, Rebuilder)
        await _restore(self._turn)
        return await self._agent.rebuild(self._turn, self._recorded.ids, self._calls)

    async def write(self) -> str:
        await _restore(self._turn)
        reply = await self._agent.turn(replace(self._turn, needs_text=True, needs_cache=False))
        return await reply.payload.read()
