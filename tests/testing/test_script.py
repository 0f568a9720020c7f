"""Scripted agents by name: what they say, what they were told."""

import pytest

from cachegraph import Graph, InputError, RunError
from cachegraph.agents.create import create_agent
from cachegraph.testing import Say, Script, Told


def duo(create: Script) -> Graph:
    graph = Graph(name="duo", create=create).add_input("question")
    graph.add_agent("expert", model="m", prompt="Know: {{ question }}", system="You know all.")
    graph.add_agent("writer", model="m", prompt="Say {{ expert }} to {{ question }}").add_edge("expert", "writer")
    graph.output = "writer"
    return graph


def test_agents_say_their_lines_and_remember_their_prompts() -> None:
    script = Script(expert="Scattering.", writer=lambda told: told.values["expert"].upper())
    assert duo(script).run(question="Why?").text == "SCATTERING."
    assert script.told["expert"] == [Told("expert", "Know: Why?", "You know all.", {"question": "Why?"})]
    assert [told.prompt for told in script.told["writer"]] == ["Say Scattering. to Why?"]


def test_a_list_has_one_line_a_turn_and_says_when_it_is_over() -> None:
    graph = duo(Script(expert=["one", "two"], writer=lambda told: told.values["expert"]))
    assert [graph.run(question="?").text for _ in range(2)] == ["one", "two"]
    with pytest.raises(RunError, match="has 2 lines for agent 'expert', and this is its turn 3"):
        graph.run(question="?")


def test_an_exception_is_raised_and_a_mapping_is_data() -> None:
    with pytest.raises(RunError, match="agent 'expert' failed: ValueError: no idea"):
        duo(Script(expert=ValueError("no idea"), writer="")).run(question="?")
    with pytest.raises(RunError, match="no idea"):
        duo(Script(expert=Say(error=ValueError("no idea")), writer="")).run(question="?")
    result = duo(Script(expert={"kind": "bug"}, writer="")).run(question="?")
    assert (result.agents["expert"].data, result.agents["expert"].text) == ({"kind": "bug"}, '{"kind": "bug"}')


def test_an_agent_without_a_line_is_an_error_unless_somebody_else_makes_it() -> None:
    with pytest.raises(InputError, match="agent 'writer' has no line in the script, which has lines for 'expert'"):
        duo(Script(expert="x")).run(question="?")
    made = []

    def other(name, *rest, **more):  # type: ignore[no-untyped-def]
        made.append(name)
        return create_agent(name, *rest, **more)

    duo(Script(expert="x", otherwise=other)).with_channels("text")
    assert made == ["writer"]


def test_an_agent_with_tools_has_lines_as_any_other() -> None:
    graph = Graph(name="solo", create=Script(expert="Scattering.")).add_tools("calc", command=["calc"])
    graph.add_agent("expert", model="m", prompt="Why?", tools=["calc"])
    graph.output = "expert"
    assert graph.run().text == "Scattering."
