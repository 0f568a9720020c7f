"""A run of this process, with its events so far and its waiting readers."""

from collections.abc import AsyncIterator
from typing import Any

import anyio

from cachegraph.agents.prompt.prompt_view import PromptView
from cachegraph.graph.graph import Graph
from cachegraph.graph.run.events import AgentPrefilled, Event
from cachegraph.graph.run.result import Result
from cachegraph.graph.run.stream import RunStream

from ..hide_paths import hide_paths

__all__ = ["LiveRun", "without_paths"]

MESSAGES = {"error", "fallback_reason", "fuser", "message", "model"}  # fields that may contain local paths

MOST_PROMPTS = 200  # turns of one run whose prompts are kept


class LiveRun:
    """One run. Events are numbered from 0 across all attempts."""

    def __init__(self, id: str, tenant: str | None):
        self.id, self.tenant = id, tenant
        self.events: list[dict[str, Any]] = []
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
        self.events.append(without_paths(event.to_dict()))
        self._wake()

    def end(self) -> None:
        """End the attempt: finished, failed, paused, cancelled or parked."""
        self.at_work = False
        self._wake()

    async def follow(self, first: int) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        """Yield the events from this number on, until the run is no longer live."""
        number = first
        while True:
            while number < len(self.events):
                yield number, self.events[number]
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
        return {str(name): without_paths(each, str(name)) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(each, key) for each in value]
    return value
