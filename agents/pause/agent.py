"""PauseAgent: renders a question and pauses the run."""

from collections.abc import Sequence
from typing import NoReturn

from cachegraph.channels.peer import Peer

from ..base import Paused, Turn
from ..prompt.prompt import PromptTemplate, read_texts, readable
from ..prompt.render_threads import TextWork
from ..spec import AgentSpec
from .spec import PauseSpec

__all__ = ["PauseAgent"]


class PauseAgent:
    """Renders its question and pauses the run. It never replies: the turn log supplies the answer instead."""

    def __init__(self, name: str, spec: PauseSpec, *, upstream: Sequence[str] = ()):
        self.name = name
        self._question = PromptTemplate(name, AgentSpec(model="a person", prompt=spec.pause), upstream)

    async def open(self) -> None: ...

    def peer(self) -> Peer:
        return Peer(self.name, "a person", why_no_cache=f"agent {self.name!r} {PauseSpec.no_cache}")

    async def turn(self, turn: Turn) -> NoReturn:
        """Raise Paused with the question."""
        values = {**turn.inputs, **await read_texts(turn)}
        raise Paused(readable(await self._question.messages_in_thread(values, TextWork())))

    async def close(self) -> None: ...
