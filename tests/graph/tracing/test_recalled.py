"""A resumed run: turns that were taken before are seen, and not counted again."""

from pathlib import Path

import pytest
from telemetry import Seen

from cachegraph import Graph
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.run.events import Event
from cachegraph.graph.run.run import Run
from cachegraph.graph.run.turn_log import RecordedTurn
from cachegraph.graph.store import Store
from cachegraph.graph.tracing.chrome import chrome_trace
from cachegraph.graph.tracing.enabled import watched

pytestmark = pytest.mark.anyio


class Remembers:
    run = "1"

    def recall(self, turn: str) -> RecordedTurn | None:
        tokens = {"prefilled": 9, "generated": 9}
        return RecordedTurn("as before", agent={"tokens": tokens, "timing": {"decode": 5.0}}) if turn == "a" else None

    async def record(self, turn: str, recorded: RecordedTurn) -> None: ...

    def asked(self, turn: str, question: str) -> None: ...


async def test_a_recalled_turn_is_marked_and_its_tokens_are_not_counted_again(seen: Seen) -> None:
    graph = Graph(name="pair", create=scripted(ScriptedAgent("b", "one two three")))
    graph.add_agent("a", model="m", prompt="").add_agent("b", model="m", prompt="{{ a }}").add_edge(
        "a", "b"
    ).output = "b"
    events: list[Event] = []
    listener = watched(graph.spec, {}, events.append)
    await Run(graph.validate().spec, {}, graph.awire, listener, turn_log=Remembers()).execute()
    spans = seen.spans
    assert spans["invoke_agent a"].attributes["cachegraph.recalled"] is True
    assert "cachegraph.recalled" not in spans["invoke_agent b"].attributes
    assert sum(point.sum for point in seen.points("gen_ai.client.token.usage")) == 3
    slices = {each["name"]: each for each in chrome_trace([("pair", events)])["traceEvents"] if each["ph"] == "X"}
    assert "recalled" in slices["a"]["args"]
    assert "decode" not in slices


async def test_an_agent_that_waits_for_a_person_is_no_error(seen: Seen, tmp_path: Path) -> None:
    graph = Graph(name="asking", agents={"person": {"pause": "Go on?"}}, output="person")
    events: list[Event] = []
    async with graph.stream(store=Store(tmp_path / "runs.db")) as stream:
        events += [event async for event in stream]
    span = seen.spans["invoke_agent person"]
    assert span.attributes["cachegraph.status"] == "paused"
    assert "error.type" not in span.attributes
    assert seen.spans["invoke_workflow asking"].status.is_ok
    assert seen.spans["invoke_workflow asking"].attributes["cachegraph.status"] == "paused"
    slices = {each["name"]: each for each in chrome_trace([("asking", events)])["traceEvents"] if each["ph"] == "X"}
    assert slices["person"]["args"] == {"unfinished": "asks: Go on?"}
