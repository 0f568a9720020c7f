"""Session: a conversation that a run continues. One run holds it at a time, and only a successful run saves it."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread

from cachegraph.common.abandoned_threads import acquire_in_thread
from cachegraph.errors import InputError

from .session_files import AgentRecord, Exchange, SessionRecord, read, sweep, taken, write
from .spec import Memory, MemorySpec

__all__ = ["Recollection", "Session"]

Save = Callable[[Path], Any]  # writes a cache into a folder and returns the KeptCache


@dataclass(eq=False)
class Recollection:
    """What one agent remembers in one run. Additions are saved if the run succeeds."""

    folder: Path
    record: AgentRecord
    limits: MemorySpec
    save: Save | None = None  # for the cache after the last turn

    @property
    def told(self) -> int:
        """The number of earlier exchanges in front of the next prompt."""
        return len(self.record.exchanges) - self.record.left_out

    def sign(self, mark: str) -> None:
        """Mark the last exchange with the run and turn that produced it."""
        self.record.exchanges[-1].turn = mark

    def has(self, mark: str) -> bool:
        """Whether the exchange with this mark is remembered."""
        return any(exchange.turn == mark for exchange in self.record.exchanges)

    def before(self, mark: str) -> "Recollection":
        """The memory before the exchange with this mark; all of it if there is none."""
        exchanges = self.record.exchanges
        end = next((number for number, exchange in enumerate(exchanges) if exchange.turn == mark), len(exchanges))
        return Recollection(self.folder, self.record.model_copy(update={"exchanges": exchanges[:end]}), self.limits)

    def snapshot(self) -> "Recollection":
        """What is told now, for another process: without earlier exchanges, and without the cache on this machine."""
        exchanges = self.record.exchanges[self.record.left_out :]
        return Recollection(self.folder, AgentRecord(exchanges=exchanges), self.limits)

    def add_told(self, turns: int, messages: list[tuple[str, str]], reply: str) -> None:
        """Remember a turn that another process took from a snapshot and that was told the last `turns` exchanges."""
        self.record.left_out = len(self.record.exchanges) - turns
        self.add(messages, reply)

    def history(self, tokens: int | None, count: Callable[[str], int]) -> list[tuple[str, str]]:
        """The (role, content) messages in front of the next prompt. `tokens` is the default limit.

        Beyond a limit, the older half is dropped permanently. Dropping one exchange at a time would change the start of
        every prompt and invalidate every cache.
        """
        limits = self.limits
        most = limits.tokens if limits.tokens is not None else tokens
        exchanges = self.record.exchanges[self.record.left_out :]
        sizes = [sum(count(content) for _, content in _messages([exchange])) for exchange in exchanges]
        if len(exchanges) > limits.turns or (most is not None and sum(sizes) > most):
            while exchanges and (len(exchanges) > limits.turns // 2 or (most is not None and sum(sizes) > most // 2)):
                exchanges, sizes = exchanges[1:], sizes[1:]
            self.record.left_out = len(self.record.exchanges) - len(exchanges)
        return _messages(exchanges)

    def add(self, messages: list[tuple[str, str]], reply: str, save: Save | None = None) -> None:
        """Remember a turn, and the cache after it."""
        self.record.exchanges.append(Exchange(messages=messages, reply=reply))
        self.save = save


class Session:
    """A session held by one run: `async with` takes it. Raises InputError if another run holds it."""

    def __init__(self, name: str, graph: str):
        self.name = name
        self._graph = graph
        self._taken: AbstractContextManager[Path] | None = None
        self._record: SessionRecord | None = None
        self._recollections: dict[str, Recollection] = {}

    async def __aenter__(self) -> Self:
        return await acquire_in_thread(self._take, Session._leave)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._let_go, error is None)

    def of(self, agent: str, memory: Memory) -> Recollection:
        """The memory of this agent, within its limits."""
        assert self._record is not None
        if agent not in self._recollections:
            record = self._record.agents.setdefault(agent, AgentRecord())
            limits = memory if isinstance(memory, MemorySpec) else MemorySpec()
            self._recollections[agent] = Recollection(self._folder, record, limits)
        return self._recollections[agent]

    def _take(self) -> Self:
        self._taken = taken(self.name)
        self._folder = self._taken.__enter__()
        try:
            self._record = read(self.name) or SessionRecord(session=self.name, graph=self._graph)
            if self._record.graph != self._graph:
                raise InputError(
                    f"the session {self.name!r} is one of the graph {self._record.graph!r}, not of {self._graph!r}; "
                    "take another name"
                )
        except BaseException:
            self._taken.__exit__(None, None, None)
            raise
        return self

    def _leave(self) -> None:
        """Release the session unchanged: the run was cancelled while a thread took it."""
        assert self._taken is not None
        self._taken.__exit__(None, None, None)

    def _let_go(self, keep: bool) -> None:
        assert self._taken is not None
        assert self._record is not None
        try:
            if keep:
                for recollection in self._recollections.values():
                    if recollection.save is not None:  # else the earlier cache still begins the next prompt
                        recollection.record.cache = recollection.save(self._folder)
                write(self._record)
                sweep()
        finally:
            self._taken.__exit__(None, None, None)


def _messages(exchanges: Iterable[Exchange]) -> list[tuple[str, str]]:
    return [message for exchange in exchanges for message in (*exchange.messages, ("assistant", exchange.reply))]
