"""A graph without models: a reader whose cache is the story, and an answerer who needs the right one."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cachegraph.agents.base import ChoiceScore, Turn
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.channels.payload import Route
from cachegraph.channels.spec import TextEdge
from cachegraph.graph.graph import Graph
from cachegraph.graph.plan import wiring

STORY: dict[str, Any] = {
    "name": "story",
    "models": {"small": "m", "big": "n"},
    "inputs": {"context": {}, "question": {}},
    "agents": {
        "reader": {"model": "small", "prompt": "{{ context }}", "generate": {"max_new_tokens": 0}},
        "answerer": {"model": "small", "prompt": "{{ reader }} {{ question }}"},
    },
    "edges": [{"from": "reader", "to": "answerer", "channel": "cache"}],
    "output": "answerer",
}


class Reader(ScriptedAgent):
    """Hands over its story, as words or as a cache."""

    async def turn(self, turn: Turn) -> Any:
        self.cache = lambda: turn.inputs["context"]
        self.reply = turn.inputs["context"]
        return await super().turn(turn)


class Answerer(ScriptedAgent):
    """Knows the answer where `knows` says so of what it heard, by channel, for its own story."""

    def __init__(self, name: str, knows: Callable[[str, str], bool] = lambda heard, story: heard == story):
        super().__init__(name)
        self.knows = knows
        self.scored = 0

    async def turn(self, turn: Turn) -> Any:
        self.reply = "right" if await self._knows(turn) else "wrong"
        return await super().turn(turn)

    async def score(self, turn: Turn, choices: Sequence[str], *, verbatim: bool = False) -> list[ChoiceScore]:
        self.scored += 1
        liked = "right" if await self._knows(turn) else "wrong"
        return [ChoiceScore(-1.0 if choice == liked else -5.0, 1, len(choice)) for choice in choices]

    async def _knows(self, turn: Turn) -> bool:
        (heard,) = [await self._heard(turn, delivery) for delivery in turn.deliveries] or [""]
        return bool(self.knows(heard, turn.inputs["context"]))

    async def _heard(self, turn: Turn, delivery: Any) -> str:
        if delivery.route.used == "text":
            return str(await delivery.payload.read())
        if turn.control is None:
            return str(delivery.payload.cache)
        if turn.control.kind == "zero":
            return "zero"
        assert turn.control.other is not None
        (other,) = turn.control.other.deliveries
        return str(other.payload.cache)


def rows(count: int = 40) -> list[dict[str, Any]]:
    """Questions of which each has its own story."""
    return [
        {"context": f"story {number}", "question": f"q{number}", "choices": ["wrong", "right"], "answer": 1}
        for number in range(count)
    ]


@pytest.fixture
def caches_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted agents can't send caches; here their cache edges do what a graft does."""

    def decide(edge: Any, *_: Any) -> Route:
        if isinstance(edge, TextEdge):
            return Route(edge, "text")
        return Route(edge, "cache", needs_text=False, needs_cache=True, carries="prompt")

    monkeypatch.setattr(wiring, "_route", decide)


def story_graph(*agents: ScriptedAgent, **parts: Any) -> Graph:
    """The graph above, with these agents instead of its own."""
    own = (Reader("reader"), Answerer("answerer"))
    return Graph(create=scripted(*own, *agents), **{**STORY, **parts})
