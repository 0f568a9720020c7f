"""A local agent's memory of a session: earlier turns before its prompt, their cache before its row."""

from functools import partial

import anyio.to_thread

from cachegraph.engine.engine import Engine

from ..base import MemoryReport
from ..prompt.chat_context import EARLIER, plain, remembered
from ..prompt.prompt import Message
from ..sessions.session import Recollection
from ..sessions.session_caches import keep, take_up
from .row import AgentRow

__all__ = ["Remembering"]


class Remembering:
    """One turn of an agent with its memory."""

    def __init__(self, agent: str, recollection: Recollection, engine: Engine):
        """Count the remembered tokens. The text may be long: call this in a thread."""
        self._agent = agent
        self._recollection = recollection
        self._engine = engine
        tokenizer = engine.model.tokenizer
        assert tokenizer is not None
        room = engine.model.info.max_positions // 2
        past = recollection.history(room, lambda text: len(tokenizer.encode(text, special=False).ids))
        self.history = [plain(role, text, EARLIER) for role, text in past]
        self.report = MemoryReport(recollection.told)
        self._exact = False

    async def take_up(self, row: AgentRow) -> None:
        """Put the stored cache before a row without computed entries, up to the first differing token."""
        model = self._engine.model
        self._exact = model.why_no_cache is None and not row.segments and row.sharers is None
        if not self._exact:
            return
        kept = await anyio.to_thread.run_sync(take_up, self._recollection.folder, self._recollection.record, model)
        self.report.refused = kept.refused
        same = next((n for n, (a, b) in enumerate(zip(kept.ids, row.ids, strict=False)) if a != b), None)
        length = min(len(kept.ids) if same is None else same, len(row.ids) - 1)
        if kept.kv is not None and self._engine.model.info.states and length < len(kept.ids):
            self.report.refused = (
                f"the recurrent state of {self._engine.model.name!r} was kept behind {len(kept.ids)} tokens, of which "
                f"the prompt begins with {length}"
            )
        elif kept.kv is not None and length > 0:
            row.segments, row.pending = (kept.kv.first(length),), row.ids[length:]
            row.tokens.reused += length
            self.report.reused = length

    def add(self, messages: list[Message], reply: str, row: AgentRow) -> list[tuple[str, str]]:
        """Remember this turn, and its row if its cache is exact; returns the messages kept."""
        save = None
        if self._exact:
            save = partial(
                keep, agent=self._agent, model=self._engine.model, ids=list(row.ids), segments=tuple(row.segments)
            )
        kept = remembered(messages)
        self._recollection.add(kept, reply, save)
        return kept
