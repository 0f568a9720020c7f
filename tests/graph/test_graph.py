"""The Graph object: built in code or from a recipe, with other channels, run and mapped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from cachegraph import ConfigError, Graph, InputError, Interrupted, RecipeError, Result, RunError
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.channels.spec import Channel


def duo(*agents: ScriptedAgent, **parts: Any) -> Graph:
    graph = Graph(name="duo", create=scripted(*agents), **parts)
    graph.add_input("question", "A science question.")
    graph.add_agent("expert", model="m", prompt="{{ question }}")
    graph.add_agent("answerer", model="m", prompt="{{ expert }} {{ question }}", system="Be short.")
    graph.add_edge("expert", "answerer", "auto", fuser="my-fuser", fallback="error")
    graph.output = "answerer"
    return graph


def test_a_graph_built_in_python_runs() -> None:
    result = duo().with_channels("text").run(question="why?")
    assert result.text == "answerer(expert(why?))"
    assert result.agents["expert"].text == "expert(why?)"
    assert result.agents["expert"].model == "script"
    assert result.edges["expert", "answerer"].channel_used == "text"


def test_recipe_and_object_are_one_thing(tmp_path: Path) -> None:
    graph = duo()
    path = tmp_path / "duo.yaml"
    text = graph.to_yaml(path)
    assert path.read_text(encoding="utf-8") == text
    assert [file.name for file in tmp_path.iterdir()] == ["duo.yaml"]
    assert Graph.from_yaml(path).spec == graph.spec
    assert Graph.from_yaml_text(text).spec == graph.spec
    assert Graph.from_dict(graph.spec.model_dump(by_alias=True)).spec == graph.spec
    assert Graph(graph.spec).spec is graph.spec


def test_a_recipe_that_can_not_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be written"):
        duo().to_yaml(tmp_path / "nowhere" / "duo.yaml")
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="can't be written"):
        duo().to_yaml(tmp_path / "taken")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("channel", ["text", "cache", "both", "auto"])
def test_swapping_channels_there_and_back_changes_nothing(channel: Channel) -> None:
    graph = duo()
    swapped = graph.with_channels(channel)
    assert [edge.channel for edge in swapped.spec.edges] == [channel]
    assert swapped.with_channels("text").with_channels("auto").spec == graph.spec
    assert graph.spec.edges[0].channel == "auto"


def test_a_mapping_swaps_only_the_edges_it_names() -> None:
    graph = duo().add_agent("third", model="m", prompt="{{ question }}").add_edge("third", "answerer")
    swapped = graph.with_channels({("third", "answerer"): "both"})
    assert [edge.channel for edge in swapped.spec.edges] == ["auto", "both"]
    with pytest.raises(InputError, match=r"no edge .*; did you mean .*third"):
        graph.with_channels({("thrid", "answerer"): "both"})
    with pytest.raises(InputError, match="no channel 'cahce'; did you mean 'cache'"):
        graph.with_channels("cahce")  # type: ignore[arg-type]


def test_a_copy_with_other_channels_shares_the_open_agents() -> None:
    expert = ScriptedAgent("expert")
    text = duo(expert).with_channels("text")
    with text:
        text.run(question="a")
        both = text.with_channels({("expert", "answerer"): "text"})
        both.run(question="b")
        assert expert.opened == 1
        assert [turn["question"] for turn in expert.turns] == ["a", "b"]
    assert expert.closed == 1


def test_a_closed_graph_opens_again_for_the_next_run() -> None:
    expert = ScriptedAgent("expert")
    graph = duo(expert).with_channels("text")
    graph.run(question="a")
    graph.close()
    graph.close()
    graph.run(question="b")
    assert (expert.opened, expert.closed) == (2, 1)


def test_what_was_open_before_a_change_is_closed_with_the_graph() -> None:
    expert = ScriptedAgent("expert")
    graph = duo(expert).with_channels("text")
    graph.run(question="a")
    graph.add_agent("third", model="m", prompt="x").add_edge("third", "answerer")
    graph.close()
    assert expert.closed == 1
    assert "third()" not in graph.run(question="b").agents["expert"].text  # type: ignore[operator]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda graph: graph.add_agent("expert", model="m", prompt=""), "agents has 'expert' already"),
        (lambda graph: graph.add_agent("x", model="m", prompt="", sytem="s"), "sytem: .*did you mean 'system'"),
        (lambda graph: graph.add_edge("a", "b", "cahce"), "no channel 'cahce'; did you mean 'cache'"),
        (lambda graph: graph.add_edge("a", "b", fuser="f"), "edge from 'a' to 'b'.*fuser: there is no such key"),
        (lambda graph: graph.add_edge("answerer", "expert").validate(), "cycle|wait for"),
        (lambda graph: graph.add_agent("x", model="m", prompt="{{ nope }}").validate(), "nope"),
        (lambda graph: (graph.__setattr__("output", "answer"), graph.validate()), "answer"),
        (lambda graph: Graph().validate(), "agents: it is missing"),
        (
            lambda graph: graph.add_agent("x", model="m", graph="g.yaml"),
            "'x' has 'model' and 'graph', and an agent is one",
        ),
        (
            lambda graph: Graph(agents={"x": {"graph": "g", "pause": "?"}}).validate(),
            "'x' has 'graph' and 'pause', and",
        ),
        (
            lambda graph: graph.add_agent("x", pause="?", prompt=""),
            "prompt: there is no such key; only agents with 'model'",
        ),
        (lambda graph: graph.add_agent("x", model="m", prompt=3), "agents.x.prompt: it must be text, not 3"),
        (
            lambda graph: graph.add_edge("a", "b", "cache", fallback="txt"),
            "fallback: it must be 'text' or 'error', not 'txt'",
        ),
        (
            lambda graph: Graph(edges=[{"from": "a", "to": "b", "channel": "x"}]).validate(),
            "'channel' must be 'text', 'cache'",
        ),
        (
            lambda graph: graph.add_agent("x", model="m", prompt="", join="some"),
            "x.join: it must be 'all' or 'any' or a whole",
        ),
        (
            lambda graph: graph.add_agent("x", model="m", prompt="", retry={"max_attempts": 99}),
            "number from 1 to 20, not 99",
        ),
        (lambda graph: Graph().validate(), "output: it is missing; set `output` to an agent's name"),
        (lambda graph: Graph(agnets={}).validate(), "agnets: there is no such key.*did you mean 'agents'"),
    ],
)
def test_what_is_wrong_with_a_graph_is_a_recipe_error(build: Callable[[Graph], Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(duo())


@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        ((), {}, r"input 'question' is missing \(A science question\.\); give it by name: run\(question=\.\.\.\)"),
        ((), {"qestion": "a"}, "no input 'qestion'; did you mean 'question'.*is missing"),
        (({"question": "a"},), {"question": "b"}, "'question' is given twice"),
        ((), {"question": True}, "'question' must be text or a number, not bool"),
        ((), {"question": None}, "'question' must be text or a number, not NoneType"),
        (("why?",), {}, "inputs must be a mapping from names to values, not str"),
    ],
)
def test_wrong_inputs_are_named(args: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        duo().run(*args, **named)


def test_numbers_become_text_and_defaults_fill_in() -> None:
    graph = duo().with_channels("text").add_input("inputs", default="me")
    result = graph.run({"question": 42})
    assert result.agents["expert"].text == "expert(42, me)"
    assert graph.run(question=1.5, inputs="you").agents["expert"].text == "expert(1.5, you)"


def test_rows_come_back_in_their_order() -> None:
    graph = duo().with_channels("text")
    results = graph.map(({"question": number} for number in range(40)), max_concurrent=3)
    assert [result.agents["expert"].text for result in results] == [f"expert({number})" for number in range(40)]
    assert graph.map([]) == []


def failing_on_odd() -> ScriptedAgent:
    def reply(turn: Any) -> str:
        if int(turn.inputs["question"]) % 2:
            raise ValueError("odd")
        return "even"

    return ScriptedAgent("expert", reply)


def test_a_row_that_fails_leaves_the_others_alone() -> None:
    graph = duo(failing_on_odd()).with_channels("text")
    rows = [{"question": number} for number in range(4)]
    results = graph.map(rows, return_errors=True)
    assert [result.status for result in results] == ["finished", "failed"] * 2
    assert results[1].error == "agent 'expert' failed: ValueError: odd"
    with pytest.raises(RunError, match="2 of 4 rows failed; row 1: agent 'expert' failed") as caught:
        graph.map(rows)
    assert [result.status for result in caught.value.result] == ["finished", "failed"] * 2


def test_all_rows_are_checked_before_the_first_runs() -> None:
    expert = ScriptedAgent("expert")
    with pytest.raises(InputError, match="row 1: .*'question' is missing.*; add the key 'question' to the row"):
        duo(expert).with_channels("text").map([{"question": "a"}, {}])
    assert not expert.turns
    with pytest.raises(InputError, match="max_concurrent must be 1 or more"):
        duo().map([], max_concurrent=0)


def test_models_that_can_not_be_loaded_fail_the_map_once() -> None:
    expert = ScriptedAgent("expert", fail_open=ConfigError("no key"))
    with pytest.raises(ConfigError, match="no key"):
        duo(expert).with_channels("text").map([{"question": "a"}] * 5)


@pytest.mark.anyio
async def test_many_runs_are_under_way_at_the_same_time() -> None:
    entered = 0
    gate = anyio.Event()

    def count(_: Any) -> str:
        nonlocal entered
        entered += 1
        if entered == 4:
            gate.set()
        return "x"

    expert, answerer = ScriptedAgent("expert", count), ScriptedAgent("answerer", gate=gate)
    graph = duo(expert, answerer).with_channels("text")
    with anyio.fail_after(60):
        assert len(await graph.amap([{"question": "a"}] * 4, max_concurrent=4)) == 4


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "instead"), [("run", "arun"), ("map", "amap"), ("open", "aopen")])
async def test_waiting_inside_an_event_loop_is_refused_with_the_remedy(name: str, instead: str) -> None:
    arguments: dict[str, list[Any]] = {"run": [{"question": "a"}], "map": [[]], "open": []}
    with pytest.raises(InputError, match=f"await graph.{instead}"):
        getattr(duo().with_channels("text"), name)(*arguments[name])


def test_ctrl_c_gives_what_had_finished() -> None:
    import signal

    def interrupt(_: Any) -> str:
        signal.raise_signal(signal.SIGINT)
        return "not heard"

    graph = duo(ScriptedAgent("answerer", interrupt)).with_channels("text")
    with pytest.raises(Interrupted) as caught:
        graph.run(question="a")
    assert caught.value.result.status == "cancelled"
    assert caught.value.result.agents["expert"].text == "expert(a)"
    with pytest.raises(KeyboardInterrupt) as several:
        graph.map([{"question": "a"}, {"question": "b"}], max_concurrent=1)
    statuses = [result.status for result in several.value.result]  # type: ignore[attr-defined]
    assert statuses == ["cancelled", "not_started"]


def test_a_result_survives_json() -> None:
    result = duo().with_channels("text").run(question="why?")
    text = result.to_json()
    assert Result.from_json(text) == result
    assert json.loads(text)["edges"][0]["from"] == "expert"
    assert json.loads(text)["schema_version"] == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 2}', '{"edges": [{}]}', '{"edges": [1]}'])
def test_what_is_no_result_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="not a result"):
        Result.from_json(text)
