"""A turn log's turns: recorded once, stood in for ever after."""

import pytest

from cachegraph.agents.base import Delivery, MemoryReport, Reply, ToolCall, Turn
from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.channels.payload import EdgeReport, Payload, Route
from cachegraph.channels.spec import TextEdge
from cachegraph.graph.run.result import AgentResult
from cachegraph.graph.run.turn_log import RecordedTurn, note, take_turn

pytestmark = pytest.mark.anyio


class Memory:
    """A turn log that forgets when the test ends."""

    run = "1"

    def __init__(self) -> None:
        self.turns: dict[str, RecordedTurn] = {}

    def recall(self, turn: str) -> RecordedTurn | None:
        return self.turns.get(turn)

    async def record(self, turn: str, recorded: RecordedTurn) -> None:
        assert turn not in self.turns
        self.turns[turn] = recorded

    def asked(self, turn: str, question: str) -> None:
        raise AssertionError(turn)


class Caching(ScriptedAgent):
    """Hands over a cache that says how it came to be."""

    async def turn(self, turn: Turn) -> Reply:
        reply = await super().turn(turn)
        reply.payload.cache, reply.ids = "decoded", [1, 2]  # type: ignore[assignment]  # a word stands for it
        reply.edges = {"before": EdgeReport("cache", "cache", residuals={3: (0.5, None)})}
        return reply

    async def rebuild(self, turn: Turn, ids: object, calls: object = ()) -> str:
        heard = [delivery.payload.cache for delivery in turn.deliveries]
        return f"reread {ids} {heard}"


def over_cache(message: Payload) -> Delivery:
    edge = TextEdge.model_validate({"from": message.sender, "to": "x"})
    return Delivery(Route(edge, "cache", needs_cache=True), message)


async def test_a_recalled_turn_is_not_taken_and_says_what_it_said() -> None:
    turn_log, agent, turn = Memory(), Caching("a", "yes"), Turn({"q": "why"}, needs_cache=True)
    first = await take_turn(turn_log, "a", agent, turn)
    called = [ToolCall("calc.add", {"a": 1}, "2", seconds=0.5)]
    told = AgentResult("finished", first.payload.text, tokens=first.tokens, tool_calls=called, memory=MemoryReport(3))
    await note(turn_log, "a", told, first)
    again = await take_turn(turn_log, "a", agent, turn)
    assert (again.tool_calls, again.memory) == (called, MemoryReport(3))
    await note(turn_log, "a", AgentResult("finished"), again)  # recorded already: nothing happens
    assert len(agent.turns) == 1
    assert (again.recalled, again.payload.text, again.tokens, again.edges) == (True, "yes", first.tokens, first.edges)
    assert again.payload.cache is None


async def test_lost_caches_come_back_from_the_first_one_on_and_only_when_they_are_needed() -> None:
    turn_log = Memory()
    turn_log.turns = {"a": RecordedTurn("A", ids=[7]), "b": RecordedTurn("B", ids=[8, 9])}
    a = await take_turn(turn_log, "a", Caching("a"), Turn({}, needs_cache=True))
    b = await take_turn(turn_log, "b", Caching("b"), Turn({}, [over_cache(a.payload)], needs_cache=True))
    assert a.payload.cache is b.payload.cache is None
    await take_turn(turn_log, "c", ScriptedAgent("c"), Turn({}, [over_cache(b.payload)]))
    assert b.payload.cache == "reread [8, 9] ['reread [7] []']"


async def test_words_that_nobody_had_asked_for_are_written_when_somebody_does() -> None:
    turn_log, agent = Memory(), Caching("a", "yes")
    turn_log.turns["a"] = RecordedTurn(None)
    reply = await take_turn(turn_log, "a", agent, Turn({"q": "why"}, needs_text=False, needs_cache=True))
    assert not agent.turns
    assert await reply.payload.read() == "yes"
