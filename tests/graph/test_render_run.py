"""A run drawn on its graph: colours, figures, channels and what went otherwise than asked."""

from dataclasses import asdict
from xml.etree import ElementTree

import pytest

from cachegraph import Graph, InputError, Result, RunError
from cachegraph.agents.base import Timing, Tokens
from cachegraph.channels.payload import EdgeReport
from cachegraph.graph.draw.render_run import run_to_mermaid, run_to_svg, run_to_text
from cachegraph.graph.draw.run_view import RunView, agent_of, from_result, from_store
from cachegraph.graph.run.result import AgentResult
from cachegraph.graph.run.turn_log import RecordedTurn
from cachegraph.graph.store.records import Outcome, Setting, StoredRun, StoredTurn, Unfinished
from cachegraph.testing import Script

from .flow import build


def pair(script: Script) -> Graph:
    graph = Graph(name="pair", create=script)
    graph.add_agent("reader", model="m", prompt="").add_agent("writer", model="m", prompt="{{ reader }}")
    graph.add_edge("reader", "writer", channel="cache").output = "writer"
    return graph


def failed() -> tuple[Graph, RunView]:
    graph = pair(Script(reader=ValueError("a <bad> day"), writer=""))
    with pytest.raises(RunError) as caught:
        graph.run()
    return graph, from_result(caught.value.result)


def test_text_says_for_every_agent_how_it_ended_and_what_its_edges_brought() -> None:
    graph = pair(Script(reader="one two", writer="three"))
    lines = run_to_text(graph.spec, from_result(graph.run())).splitlines()
    assert lines[0].startswith("pair: this run of 'pair', finished after ")
    assert lines[1].split()[:3] == ["1.", "reader", "finished"]
    assert lines[1].endswith("wrote 2  script")
    assert lines[3].strip() == "from reader: text, not cache"
    assert "follows a script and has no KV cache" in lines[4]


def test_a_failed_run_shows_what_failed_what_never_started_and_why() -> None:
    graph, happened = failed()
    text = run_to_text(graph.spec, happened)
    assert "reader  failed" in text
    assert "error: ValueError: a <bad> day" in text
    assert "writer  cancelled" in text
    drawn = run_to_mermaid(graph.spec, happened)
    assert '["<b>reader</b><br/>failed"]:::failed' in drawn
    assert "classDef cancelled" in drawn
    picture = run_to_svg(graph.spec, happened)
    classes = {each.get("class") for each in ElementTree.fromstring(picture).iter()}
    assert {"box failed", "box cancelled output", "line none"} <= classes
    assert "a &lt;bad&gt; day" in picture


def test_a_fallback_is_marked_with_its_reason_in_the_picture() -> None:
    graph = pair(Script(reader="", writer=""))
    picture = ElementTree.fromstring(run_to_svg(graph.spec, from_result(graph.run())))
    (edge,) = (each for each in picture.iter() if each.get("class") == "line text fell")
    assert "has no KV cache" in "".join(edge.itertext())


def test_a_stored_run_shows_every_turn_and_those_under_way() -> None:
    def turn(name: str, seconds: float) -> StoredTurn:
        agent = AgentResult("finished", model="tiny", timing=Timing(total=seconds), tokens=Tokens(4, 2, 1), turn=name)
        report = asdict(EdgeReport("cache", "cache", bytes=2000, positions_grafted=3))
        return StoredTurn(name, 0.0, RecordedTurn("x", agent=asdict(agent), edges={"reader": report}))

    recorded = [turn("reader[0]", 1.0), turn("reader[1]", 2.0), turn("writer", 0.5), turn("reader/inner", 9.0)]
    outcome = Outcome("stopped", {"writer#2": Unfinished("paused", prompt="Go on?")})
    stored = StoredRun("abc", "pair", "paused", 0.0, 4.0, "", Setting({}, "."), outcome, recorded)
    graph = pair(Script(reader="", writer=""))
    happened = from_store(stored)
    text = run_to_text(graph.spec, happened)
    assert "pair: run abc, paused after 4.00 s: stopped" in text
    assert "reader  finished  3.00 s  2 turns  read 8  reused 2  wrote 4  tiny" in text
    assert "reader[1]: finished, 2.00 s" in text
    assert "writer  paused" in text
    assert "from reader: cache, 2.0 kB, 3 grafted" in text
    assert ":::paused" in run_to_mermaid(graph.spec, happened)


def test_many_turns_are_cut_short() -> None:
    turns = [AgentResult("finished", turn=f"reader#{number}") for number in range(1, 1001)]
    happened = RunView("run x", "finished", 1.0, turns={"reader": turns})
    text = run_to_text(pair(Script(reader="", writer="")).spec, happened)
    assert "... and 988 turns more" in text
    assert len(text.splitlines()) < 20


def test_a_run_of_another_recipe_is_refused() -> None:
    graph, happened = failed()
    other = Graph(name="other", agents={"lone": {"model": "m", "prompt": ""}}, output="lone").spec
    with pytest.raises(InputError, match="agents that are not in the recipe 'other': 'reader', 'writer'"):
        happened.check(other)


@pytest.mark.parametrize("turn", ["reader", "reader#2", "reader[3]", "reader#2[3]", "reader/inner#2"])
def test_a_turn_belongs_to_an_agent(turn: str) -> None:
    assert agent_of(turn) == "reader"


def test_a_result_that_was_written_and_read_back_is_drawn_the_same() -> None:
    graph = pair(Script(reader="one", writer="two"))
    result = graph.run()
    again = Result.from_json(result.to_json())
    assert run_to_text(graph.spec, from_result(again)) == run_to_text(graph.spec, from_result(result))


def test_the_last_round_of_a_loop_is_told_by_its_turn() -> None:
    happened = RunView("run x", "finished", 1.0, turns={"reader": [AgentResult("finished", turn="reader#3")]})
    assert "reader  finished  0.00 s  round 3" in run_to_text(pair(Script(reader="", writer="")).spec, happened)


def test_a_result_shows_the_last_turns_of_a_loop_and_how_many_there_were() -> None:
    graph = build([{"edge": "a>b"}, {"edge": "b>a", "max_rounds": 12}], output="b")
    happened = from_result(Result.from_json(graph.run().to_json()))
    assert [turn.turn for turn in happened.turns["b"]] == [f"b#{number}" for number in range(4, 13)]
    text = run_to_text(graph.spec, happened)
    assert "the last 9 of 12 turns" in text
    assert "b#4: finished" in text
