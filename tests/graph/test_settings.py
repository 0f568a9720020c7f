"""Settings that a caller changes for the outputs of a run: `Graph.with_settings`."""

from pathlib import Path
from typing import Any

import pytest

from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.errors import InputError
from cachegraph.graph.graph import Graph
from cachegraph.graph.store import Store
from cachegraph.testing import tiny_model


def duo(**generate: Any) -> Graph:
    """Two agents of a tiny model; the second one's reply is the output."""
    models = {"tiny": {"source": tiny_model(), "dtype": "float32", "device": "cpu"}}
    graph = Graph(name="duo", models=models)
    graph.add_input("question")
    graph.add_agent("first", model="tiny", prompt="{{ question }}", generate={"max_new_tokens": 6})
    graph.add_agent("last", model="tiny", prompt="{{ first }}", generate={"max_new_tokens": 6, **generate})
    graph.add_edge("first", "last")
    graph.output = "last"
    return graph


def test_settings_change_how_the_output_decodes_and_no_other_agent() -> None:
    with duo() as graph:
        plain = graph.run(question="why")
        short = graph.with_settings(max_new_tokens=2).run(question="why")
    assert (short.agents["first"].tokens.generated, short.agents["last"].tokens.generated) == (6, 2)
    assert plain.agents["last"].tokens.generated == 6
    assert plain.text.startswith(short.text)


def test_settings_stay_with_a_copy_that_swaps_channels_and_do_not_change_the_graph() -> None:
    with duo() as graph:
        changed = graph.with_settings(max_new_tokens=2).with_channels("cache")
        assert changed.run(question="why").agents["last"].tokens.generated == 2
        assert graph.run(question="why").agents["last"].tokens.generated == 6
        assert graph.settings == {}
        assert changed.spec.agents == graph.spec.agents


def test_a_resumed_run_has_the_settings_it_was_begun_with(tmp_path: Path) -> None:
    graph = duo()
    graph.add_agent("asked", pause="What?")
    graph.add_edge("asked", "last")
    store = Store(tmp_path / "runs.db")
    with graph:
        paused = graph.with_settings(max_new_tokens=2).run(question="why", store=store)
        assert paused.run_id is not None
        result = graph.resume(paused.run_id, answer="this", store=store)
    assert result.agents["last"].tokens.generated == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperatur": 1}, "did you mean 'temperature'"),
        ({"temperature": -1}, "'temperature' is wrong"),
        ({"max_new_tokens": 0}, "must be 1 or more"),
        ({"json_schema": {"type": "nothing"}}, "json_schema of agent 'last'"),
    ],
)
def test_a_setting_that_can_not_be_honoured_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        duo().with_settings(**settings)


def test_an_output_that_only_reads_takes_no_settings() -> None:
    with pytest.raises(InputError, match="'last' only reads"):
        duo(max_new_tokens=0).with_settings(temperature=1.0)


def test_an_output_that_is_a_function_takes_no_settings() -> None:
    graph = Graph(name="plain", create=scripted(ScriptedAgent("a")))

    @graph.function
    def a() -> str:
        return "x"

    graph.output = "a"
    with pytest.raises(InputError, match="not written by a model"):
        graph.with_settings(temperature=1.0)


def test_settings_reach_the_agent_that_writes_the_output_of_an_included_recipe(tmp_path: Path) -> None:
    duo().to_yaml(tmp_path / "duo.yaml")
    outer = Graph(name="outer", folder=tmp_path)
    outer.add_input("question")
    outer.add_agent("team", graph="duo.yaml", inputs={"question": "{{ question }}"})
    outer.output = "team"
    with outer:
        result = outer.with_settings(max_new_tokens=2).run(question="why")
    inside = result.agents["team"].inside
    assert (inside["first"].tokens.generated, inside["last"].tokens.generated) == (6, 2)
