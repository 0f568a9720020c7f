"""The events of one turn in a replica, until the driver takes them."""

from typing import NamedTuple

import anyio

from cachegraph.agents.base import ToolCall
from cachegraph.agents.prompt.prompt_view import PromptView
from cachegraph.agents.tools.content import Content
from cachegraph.agents.tools.parse_calls import ParsedCall

from .remote_tools import ToolAsked

__all__ = ["EventLog", "TurnEvents"]


class TurnEvents(NamedTuple):
    """Events since the last call, in order: pieces of text, tool calls, and requests for those.

    Also the newest prompt, and its view.
    """

    events: list[str | ToolCall | ToolAsked]
    prompt: str | None
    view: PromptView | None = None  # of the computed prompt


class EventLog:
    """Collects events and hands them over in batches, as fast as they are taken."""

    def __init__(self) -> None:
        self._events: list[str | ToolCall | ToolAsked] = []
        self._asked: list[anyio.Event] = []  # for each tool call that the driver makes, set when its result is here
        self._results: dict[int, Content] = {}
        self._prompt: str | None = None
        self._view: PromptView | None = None
        self._closed = False
        self._changed = anyio.Event()

    def text(self, piece: str) -> None:
        """Add a piece of the reply."""
        if self._events and isinstance(self._events[-1], str):
            self._events[-1] += piece
        else:
            self._events.append(piece)
        self._changed.set()

    def tool(self, call: ToolCall) -> None:
        """Add a tool call."""
        self._events.append(call)
        self._changed.set()

    async def ask(self, call: ParsedCall) -> Content:
        """Ask for a tool call, and wait for its result."""
        number, arrived = len(self._asked), anyio.Event()
        self._asked.append(arrived)
        self._events.append(ToolAsked(number, call))
        self._changed.set()
        await arrived.wait()
        return self._results.pop(number)

    def answer(self, number: int, result: Content) -> None:
        """The result of a call that was asked for."""
        self._results[number] = result
        self._asked[number].set()

    def prompt(self, prompt: str) -> None:
        """Set the rendered prompt."""
        self._prompt = prompt
        self._changed.set()

    def view(self, view: PromptView) -> None:
        """Set the view of the computed prompt."""
        self._view = view
        self._changed.set()

    def close(self) -> None:
        """No more events follow."""
        self._closed = True
        self._changed.set()

    async def take(self) -> TurnEvents | None:
        """Wait for events and take all; None after the last."""
        while not self._events and self._prompt is None and self._view is None:
            if self._closed:
                return None
            await self._changed.wait()
            self._changed = anyio.Event()
        taken = TurnEvents(self._events, self._prompt, self._view)
        self._events, self._prompt, self._view = [], None, None
        return taken
