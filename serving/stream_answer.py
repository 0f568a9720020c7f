"""Stream the answer of a protocol that numbers no choices: its head, its text in pieces, its end."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from cachegraph.graph.run.result import Result

from .event_stream import Emit
from .generation import OnText

__all__ = ["Answer", "stream_answer"]


class Answer(Protocol):
    """Encodes one reply as server-sent events."""

    def begin(self) -> list[bytes]: ...

    def text(self, text: str) -> bytes: ...

    def end(self, result: Result) -> list[bytes]: ...


async def stream_answer(answer: Answer, reply: Callable[[OnText], Awaitable[Result]], emit: Emit) -> None:
    """Emit the reply as it is written. Nothing is emitted before its first text: an early error still gets a status."""
    has_begun = False

    def begin() -> None:
        nonlocal has_begun
        if not has_begun:
            has_begun = True
            for event in answer.begin():
                emit(event)

    def on_text(choice: int, text: str) -> None:
        begin()
        emit(answer.text(text))

    result = await reply(on_text)
    begin()
    for event in answer.end(result):
        emit(event)
