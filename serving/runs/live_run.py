"""A run of this process, with its events so far and its waiting readers."""

import json
from collections.abc import AsyncGenerator
from secrets import token_hex
from typing import Any, NamedTuple

import anyio

from cachegraph.agents.prompt.prompt_view import PromptView
from cachegraph.graph.graph import Graph
from cachegraph.graph.run.events import AgentPrefilled, Event
from cachegraph.graph.run.result import Result
from cachegraph.graph.run.stream import RunStream

from ..hide_paths import hide_paths

__all__ = ["EncodedEvent", "EventsGoneError", "LiveRun", "without_paths"]

MESSAGES = {"error", "fallback_reason", "fuser", "message", "model"}  # fields that may contain local paths

MOST_PROMPTS = 200  # turns of one run whose prompts are kept
OBJECTS = 300  # bytes that an event takes beside its text, about


class EventsGoneError(Exception):
    """The events that a reader has not seen yet are no longer in memory."""


class EncodedEvent(NamedTuple):
    """An event as JSON."""

    type: str
    turn: str | None
    data: str

    @property
    def size(self) -> int:
        return len(self.data) + OBJECTS


class LiveRun:
    """One run. Events are numbered from 0 across all attempts; the oldest are dropped beyond `most_bytes`."""

    def __init__(self, id: str, tenant: str | None, most_bytes: int):
        self.id, self.tenant = id, tenant
        self.epoch = token_hex(4)  # the event numbers of an earlier process are invalid
        self.events: list[EncodedEvent] = []
        self.dropped = 0  # events before those, so the number of the first of them
        self.event_bytes = 0
        self._most_bytes = most_bytes
        self.prompts: dict[str, PromptView] = {}  # of its latest turns
        self.prompt_tokens = 0  # of all of them, about
        self.scope = anyio.CancelScope()
        self.at_work = False
        self.stream: RunStream | None = None
        self.own_graph: Graph | None = None  # of a changed recipe, closed after the run
        self._changed = anyio.Event()

    @property
    def result(self) -> Result | None:
        return self.stream.result if self.stream is not None else None

    def begin(self, stream: RunStream, own_graph: Graph | None = None) -> None:
        """Start an attempt."""
        self.stream, self.own_graph, self.at_work, self.scope = stream, own_graph, True, anyio.CancelScope()

    def add(self, event: Event) -> None:
        if isinstance(event, AgentPrefilled):
            self._keep(event.turn, event.prompt)
        body = without_paths(event.to_dict())
        encoded = EncodedEvent(str(body["type"]), body.get("turn"), json.dumps(body, default=str))
        self.events.append(encoded)
        self.event_bytes += encoded.size
        if self.event_bytes > self._most_bytes:
            self._drop_oldest()
        self._wake()

    def end(self) -> None:
        """End the attempt: finished, failed, paused, cancelled or parked."""
        self.at_work = False
        self._wake()

    def event_id(self, number: int) -> str:
        """Return the id by which clients name an event."""
        return f"{self.epoch}-{number}"

    async def follow(self, first: int) -> AsyncGenerator[tuple[int, EncodedEvent], None]:
        """Yield the events from this number on, until the run is no longer live.

        Raises EventsGoneError if the next one has been dropped: the reader comes late, or reads slowly.
        """
        number = first
        while True:
            while number < self.dropped + len(self.events):
                if number < self.dropped:
                    raise EventsGoneError
                yield number, self.events[number - self.dropped]
                number += 1
            if not self.at_work:
                return
            await self._changed.wait()

    def forget_prompts(self) -> None:
        """Forget all prompts."""
        self.prompts.clear()
        self.prompt_tokens = 0

    async def ended(self) -> None:
        """Wait until the run is no longer live."""
        while self.at_work:
            await self._changed.wait()

    def _keep(self, turn: str, prompt: PromptView) -> None:
        """Keep the prompt of a turn for viewers, and forget the oldest ones of a long run."""
        self.prompts[turn] = prompt
        self.prompt_tokens += _size(prompt)
        while len(self.prompts) > MOST_PROMPTS:
            self.prompt_tokens -= _size(self.prompts.pop(next(iter(self.prompts))))

    def _drop_oldest(self) -> None:
        """Drop the oldest quarter, in one go, but never the latest event."""
        count = 0
        while self.event_bytes > 0.75 * self._most_bytes and count < len(self.events) - 1:
            self.event_bytes -= self.events[count].size
            count += 1
        del self.events[:count]
        self.dropped += count

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _size(prompt: PromptView) -> int:
    """The number of a prompt's tokens; an estimate if the model is elsewhere."""
    return prompt.tokens or sum(len(part.text) for part in prompt.parts()) // 4


def without_paths(value: Any, key: str = "") -> Any:
    """Remove local paths from a JSON value's messages."""
    if isinstance(value, str):
        return hide_paths(value) if key in MESSAGES else value
    if isinstance(value, dict):
        return {str(name): without_paths(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item, key) for item in value]
    return value
