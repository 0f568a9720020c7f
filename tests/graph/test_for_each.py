"""An agent's turn for every item of a list: order, concurrency, failures, and what goes on from there."""

import anyio
import pytest
from anyio.lowlevel import checkpoint

from cachegraph import RunError
from cachegraph.agents.base import Reply, Turn
from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.graph.run.events import AgentFinished, EdgeTravelled
from cachegraph.graph.run.run import Run
from cachegraph.graph.run.turn_log import RecordedTurn

from .flow import Edges, build, heard

pytestmark = pytest.mark.anyio

WORDS = {"for_each": "words.split()", "as": "word"}


def reader(**options: object) -> ScriptedAgent:
    return ScriptedAgent("reader", lambda turn: f"<{turn.inputs['word']}>", **options)  # type: ignore[arg-type]


async def test_an_agent_takes_a_turn_an_item_and_its_replies_are_joined_in_order() -> None:
    seen: list[object] = []
    out = ScriptedAgent("out", lambda turn: seen.append(turn.deliveries[0].payload.data) or "done")  # type: ignore[func-returns-value]
    result = await build(["reader>out"], reader(), out, output="out", inputs=["words"], reader=WORDS).arun(
        words="a b c"
    )
    agent = result.agents["reader"]
    assert (agent.text, agent.data, agent.turns) == ("<a>\n\n<b>\n\n<c>", ["<a>", "<b>", "<c>"], 1)
    assert [each.turn for each in agent.items] == ["reader[0]", "reader[1]", "reader[2]"]
    assert seen == [["<a>", "<b>", "<c>"]]
    assert agent.tokens.generated == 3


async def test_an_empty_list_is_no_turn_and_an_empty_reply() -> None:
    out, told = heard("out")
    agent = reader()
    await build(["reader>out"], agent, out, output="out", inputs=["words"], reader=WORDS).arun(words="")
    assert (agent.turns, told()[0]["reader"]) == ([], "")


async def test_items_come_from_the_data_of_an_agent_upstream() -> None:
    planner = ScriptedAgent("planner", "see data", data={"steps": ["x", "y"]})
    options = {"for_each": "{{ planner.data.steps }}", "as": "word"}
    result = await build(["planner>reader"], planner, reader(), output="reader", reader=options).arun()
    assert result.text == "<x>\n\n<y>"


async def test_no_more_items_are_at_work_than_allowed_and_order_is_kept() -> None:
    busy: list[int] = []

    class Counting(ScriptedAgent):
        at_work = 0

        async def turn(self, turn: Turn) -> Reply:
            self.at_work += 1
            busy.append(self.at_work)
            for _ in range(len(turn.inputs["word"])):
                await checkpoint()
            self.at_work -= 1
            return await super().turn(turn)

    agent = Counting("reader", lambda turn: turn.inputs["word"])
    graph = build([], agent, output="reader", inputs=["words"], reader={**WORDS, "max_concurrent": 2})
    assert (await graph.arun(words="aaaa b ccc dd")).text == "aaaa\n\nb\n\nccc\n\ndd"
    assert max(busy) == 2
    graph = build([], agent, output="reader", inputs=["words"], reader=WORDS, limits={"max_concurrent": 1})
    busy.clear()
    await graph.arun(words="aaaa b ccc dd")
    assert max(busy) == 1


async def test_an_item_that_fails_ends_the_others_and_is_named() -> None:
    never = anyio.Event()

    class Failing(ScriptedAgent):
        async def turn(self, turn: Turn) -> Reply:
            if turn.inputs["word"] == "bad":
                raise ValueError("no idea")
            await never.wait()
            raise AssertionError

    graph = build([], Failing("reader"), output="reader", inputs=["words"], reader=WORDS)
    with anyio.fail_after(60), pytest.raises(RunError, match="agent 'reader' failed: item 1: ValueError: no idea"):
        await graph.arun(words="good bad good")


async def test_what_turns_out_to_be_no_list_is_refused() -> None:
    planner = ScriptedAgent("planner", "x", data={"steps": "a b"})
    graph = build(["planner>reader"], planner, output="reader", reader={"for_each": "planner.data.steps"})
    with pytest.raises(
        RunError, match=r"for_each of agent 'reader' \(planner.data.steps\) gives a text where it wants"
    ):
        await graph.arun()


async def test_events_and_the_journal_tell_items_apart() -> None:
    class Memory:
        run = "1"

        def __init__(self) -> None:
            self.turns = {"reader[1]": RecordedTurn("remembered")}

        def recall(self, turn: str) -> RecordedTurn | None:
            return self.turns.get(turn)

        async def record(self, turn: str, recorded: RecordedTurn) -> None:
            self.turns[turn] = recorded

        def asked(self, turn: str, question: str) -> None: ...

    memory, agent = Memory(), reader()
    graph = build(["reader>out"], agent, output="out", inputs=["words"], reader=WORDS)
    result = await Run(graph.spec, {"words": "a b"}, graph.awire, turn_log=memory).execute()
    assert result.agents["reader"].text == "<a>\n\nremembered"
    assert set(memory.turns) == {"reader[0]", "reader[1]", "out"}
    events = [event async for event in graph.stream(words="a b")]
    finished = [event.turn for event in events if isinstance(event, AgentFinished)]
    assert finished == ["reader[0]", "reader[1]", "reader", "out"]
    assert [(event.sender_turn, event.turn) for event in events if isinstance(event, EdgeTravelled)] == [
        ("reader", "out")
    ]


async def test_a_list_in_a_loop_gives_rounds_and_items() -> None:
    edges: Edges = ["reader>critic", {"edge": "critic>reader", "max_rounds": 2}]
    result = await build(edges, reader(), output="critic", inputs=["words"], reader=WORDS).arun(words="a b")
    assert [each.turn for each in result.agents["reader"].items] == ["reader#2[0]", "reader#2[1]"]
