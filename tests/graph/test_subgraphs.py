"""A recipe in an agent's place: inputs, outputs, turn ids, results, and what is refused."""

from pathlib import Path

import pytest

from cachegraph import Graph, InputError, RecipeError, RunError
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.recipe.load import included
from cachegraph.graph.run.events import AgentFinished, AgentStarted, EdgeTravelled, RunStarted

pytestmark = pytest.mark.anyio

INNER = """\
version: 1
name: research
inputs: {topic: {}, tone: {default: plain}}
agents:
  reader: {model: m, prompt: "{{ topic }}"}
  summer: {model: m, prompt: "{{ reader }}"}
edges: [{from: reader, to: summer}]
output: summer
"""
OUTER = """\
version: 1
name: outer
inputs: {question: {}}
agents:
  asker: {model: m, prompt: "{{ question }}"}
  research: {graph: inner.yaml, inputs: {topic: "{{ asker }} and {{ question }}"}}
  writer: {model: m, prompt: "{{ research }}"}
edges:
  - {from: asker, to: research}
  - {from: research, to: writer}
output: writer
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner.yaml").write_text(INNER)
    (tmp_path / "outer.yaml").write_text(OUTER)
    return tmp_path


def load(folder: Path, *agents: ScriptedAgent) -> Graph:
    return Graph.from_yaml(folder / "outer.yaml", create=scripted(*agents))


async def test_a_recipe_takes_an_agents_turn(folder: Path) -> None:
    reader = ScriptedAgent("reader", lambda turn: f"read: {turn.inputs['topic']}")
    graph = load(folder, reader)
    events = [event async for event in graph.stream(question="why")]
    result = await graph.arun(question="why")
    assert result.text == "writer(summer(read: asker(why) and why))"
    inside = result.agents["research"].inside
    assert (inside["reader"].text, inside["reader"].turn) == ("read: asker(why) and why", "research/reader")
    assert result.agents["research"].tokens.generated > 0
    finished = [(event.agent, event.turn) for event in events if isinstance(event, AgentFinished)]
    names = ["asker", "research/reader", "research/summer", "research", "writer"]
    assert finished == [(name, name) for name in names]
    assert sum(isinstance(event, RunStarted) for event in events) == 1
    edges = [(event.sender, event.receiver) for event in events if isinstance(event, EdgeTravelled)]
    assert ("research/reader", "research/summer") in edges
    assert all(earlier.at <= later.at for earlier, later in zip(events, events[1:], strict=False))


async def test_rounds_and_items_are_in_the_ids_of_the_turns_inside(folder: Path) -> None:
    text = OUTER.replace("inputs: {topic:", "for_each: question.split(), as: word, inputs: {topic:").replace(
        "{{ asker }} and {{ question }}", "{{ word }}"
    )
    (folder / "outer.yaml").write_text(text)
    started = [event.turn async for event in load(folder).stream(question="a b") if isinstance(event, AgentStarted)]
    assert {"research[0]/reader", "research[1]/summer"} <= set(started)


async def test_an_error_inside_names_both_agents(folder: Path) -> None:
    graph = load(folder, ScriptedAgent("reader", fail=ValueError("no")))
    with pytest.raises(RunError, match="agent 'research' failed: agent 'reader' failed: ValueError: no"):
        await graph.arun(question="why")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("topic:", "topci:"), "outer.yaml:6:42: the recipe 'inner.yaml' of agent 'research' has no input 'topci'"),
        (("topic:", "tone:"), "outer.yaml:6:21: agent 'research' gives its recipe 'inner.yaml' no 'topic', which it"),
        (("{{ asker }} and", "{{ nobody }}"), "of agent 'research' names 'nobody'"),
        (("inner.yaml", "gone.yaml"), "there is no such file"),
        (("inner.yaml", "../x.yaml"), "leads out of the recipe's folder"),
        (
            ("inner.yaml", "outer.yaml"),
            "outer.yaml:6:21: the recipe of agent 'research' includes itself: 'outer.yaml' -> ",
        ),
        (("graph: inner.yaml, ", "graph: inner.yaml, prompt: x, "), "unknown key 'prompt'"),
    ],
)
def test_what_a_recipe_is_given_is_checked_with_its_place(folder: Path, change: tuple[str, str], said: str) -> None:
    (folder / "outer.yaml").write_text(OUTER.replace(*change))
    with pytest.raises(RecipeError) as caught:
        load(folder)
    assert said in str(caught.value)


def test_problems_of_an_included_recipe_are_told_at_their_place(folder: Path) -> None:
    (folder / "inner.yaml").write_text(INNER.replace("{{ reader }}", "{{ readr }}"))
    with pytest.raises(RecipeError, match=r"inner.yaml:6:34: the prompt of agent 'summer' names 'readr'"):
        load(folder)


def test_a_recipe_that_remembers_is_not_run_many_times_at_once(folder: Path) -> None:
    inner = INNER.replace('"{{ reader }}"', '"{{ reader }}", memory: true')
    (folder / "inner.yaml").write_text(inner)
    load(folder)
    (folder / "outer.yaml").write_text(OUTER.replace("{graph:", '{for_each: "[1, 2]", graph:'))
    said = "agent 'summer' of the recipe 'inner.yaml' remembers, and agent 'research' takes many turns at once"
    with pytest.raises(RecipeError, match=f"outer.yaml:6:14: {said}"):
        load(folder)
    (folder / "middle.yaml").write_text(inner.replace("name: research", "name: middle"))
    nested = INNER.replace('{model: m, prompt: "{{ topic }}"}', '{graph: middle.yaml, inputs: {topic: "{{ topic }}"}}')
    (folder / "inner.yaml").write_text(nested)
    with pytest.raises(RecipeError, match=said):
        load(folder)


def test_recipes_that_include_each_other_are_refused_with_the_chain(folder: Path) -> None:
    inner = INNER.replace(
        'reader: {model: m, prompt: "{{ topic }}"}', 'reader: {graph: outer.yaml, inputs: {question: "{{ topic }}"}}'
    )
    (folder / "inner.yaml").write_text(inner)
    with pytest.raises(RecipeError, match="includes itself: 'outer.yaml' -> 'inner.yaml' -> 'outer.yaml'"):
        load(folder)


def test_a_graph_with_a_graph_in_it_is_written_and_read_back(folder: Path) -> None:
    graph = load(folder)
    assert Graph.from_yaml_text(graph.to_yaml(), folder).spec == graph.spec
    built = Graph(folder=folder, output="r", create=scripted()).add_input("q")
    built.add_agent("r", graph="inner.yaml", inputs={"topic": "{{ q }}"})
    assert built.run(q="why").text == "summer(reader(why, plain))"


def decided(graph: Graph) -> dict[tuple[str, str], str]:
    edges = graph.run(question="why").edges
    return {pair: report.asked for pair, report in edges.items()}


def test_other_channels_reach_the_edges_of_included_recipes(folder: Path) -> None:
    (folder / "inner.yaml").write_text(INNER.replace("to: summer}", "to: summer, channel: cache, fuser: ./mine}"))
    graph = load(folder)
    inside, outside = ("research/reader", "research/summer"), ("research", "writer")
    assert decided(graph) == {("asker", "research"): "text", outside: "text", inside: "cache"}
    text = graph.with_channels("text")
    assert set(decided(text).values()) == {"text"}
    assert set(decided(text.with_channels("both")).values()) == {"both"}
    mixed = text.with_channels({inside: "auto", outside: "both"})
    assert decided(mixed) == {("asker", "research"): "text", outside: "both", inside: "auto"}
    assert decided(graph)[inside] == "cache"  # a copy's channels are its own, though the agents are shared
    assert decided(Graph.from_yaml_text(mixed.to_yaml(), folder, create=scripted())) == decided(mixed)
    ((inner, _),) = included(mixed.spec, folder)
    assert [edge.channel for edge in inner.edges] == ["auto"]
    with pytest.raises(RecipeError, match="the channels of agent 'research': there is no edge"):
        graph.with_channels({("research/summer", "research/reader"): "text"})
    with pytest.raises(InputError, match="there is no channel 'cashe'; did you mean 'cache'"):
        graph.with_channels({inside: "cashe"})  # type: ignore[dict-item]


def test_copies_are_wired_again_after_close(folder: Path) -> None:
    graph = load(folder)
    both = graph.with_channels("both")
    assert set(decided(both).values()) == {"both"}
    graph.close()
    assert set(decided(both).values()) == {"both"}


@pytest.mark.parametrize(
    ("channels", "said"),
    [
        ("text", None),
        ('{"*": both, "reader:summer": text}', None),
        ('{"reader:sumer": text}', "outer.yaml:6:43: the channels of agent 'research': there is no edge ('reader', "),
        ("{reader: text}", "'reader' is not an edge; write 'sender:receiver', or '*' for all"),
        ("word", "outer.yaml:6:43: 'channels' must be 'text'"),
    ],
)
def test_a_recipe_says_which_channels_one_that_it_includes_has(folder: Path, channels: str, said: str | None) -> None:
    text = OUTER.replace("graph: inner.yaml,", f"graph: inner.yaml, channels: {channels},")
    (folder / "outer.yaml").write_text(text)
    if said is None:
        assert decided(load(folder))["research/reader", "research/summer"] == "text"
        return
    with pytest.raises(RecipeError) as caught:
        load(folder)
    assert said in str(caught.value)


async def test_a_recipe_that_fails_inside_keeps_what_finished_there(folder: Path) -> None:
    with pytest.raises(RunError) as caught:
        await load(folder, ScriptedAgent("summer", fail=ValueError("no"))).arun(question="why")
    inside = caught.value.result.agents["research"].inside
    assert inside["reader"].text == "reader(asker(why) and why, plain)"
    assert inside["summer"].status == "failed"
