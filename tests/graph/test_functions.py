"""Functions as agents of a graph: registered from code, or named in a recipe that may name them."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cachegraph import ChannelError, Graph, RecipeError, Result, RunError
from cachegraph.agents.scripted import ScriptedAgent, scripted

RECIPE = """\
version: 1
name: counting
inputs: {text: {}}
agents:
  words: {function: "steps.py:words"}
  writer: {model: m, prompt: "{{ words.data.n }} words: {{ words }}"}
edges:
  - {from: words, to: writer}
output: writer
"""
STEPS = "def words(text: str) -> dict[str, int]:\n    return {'n': len(text.split())}\n"


class Count(BaseModel):
    n: int


def words(text: str) -> Count:
    """At the top of a module, so a recipe can name it."""
    return Count(n=len(text.split()))


def counting(**options: Any) -> Graph:
    graph = Graph(create=scripted(ScriptedAgent("reader", "one two three")), **options)
    graph.add_input("text")
    graph.add_agent("reader", model="m", prompt="{{ text }}")
    graph.add_edge("reader", "count")
    graph.output = "count"
    return graph


def test_a_registered_function_gets_inputs_and_messages_and_gives_data() -> None:
    graph = counting()

    @graph.function
    def count(text: str, reader: str) -> Count:
        return Count(n=len(text) + len(reader.split()))

    result = graph.run(text="ab")
    assert result.text == '{"n": 5}'
    assert result.agents["count"].data == {"n": 5}
    assert count("", "x").n == 1


def test_a_function_may_have_another_name_and_a_timeout() -> None:
    graph = counting()

    @graph.function(name="count", timeout=0.2)
    async def slow() -> str:
        import anyio

        await anyio.sleep(10)
        return ""

    with pytest.raises(RunError, match=r"agent 'count' failed: it took longer than its timeout of 0.2 s"):
        graph.run(text="ab")


def test_a_function_that_fails_is_named() -> None:
    graph = counting()

    @graph.function
    def count() -> str:
        raise KeyError("gone")

    with pytest.raises(RunError, match=r"agent 'count' failed: the function '.*count' raised KeyError: 'gone'"):
        graph.run(text="ab")


def test_a_cache_edge_out_of_a_function_falls_back_with_its_reason() -> None:
    graph = Graph(create=scripted())
    graph.add_input("text")
    graph.function(words)
    graph.add_agent("writer", model="m", prompt="{{ words }}")
    graph.add_edge("words", "writer", channel="cache")
    graph.output = "writer"
    edge = graph.run(text="a b").edges["words", "writer"]
    assert edge.channel_used == "text"
    assert edge.fallback_reason == "agent 'words' is a function, which has no KV cache"


def test_a_cache_edge_that_must_not_fall_back_is_refused_when_it_is_read() -> None:
    graph = Graph(create=scripted())
    graph.add_input("text")
    graph.function(words)
    graph.add_agent("writer", model="m", prompt="{{ words }}")
    graph.add_edge("words", "writer", channel="cache", fallback="error")
    graph.output = "writer"
    with pytest.raises((RecipeError, ChannelError), match="agent 'words' is a function, which has no KV cache"):
        graph.run(text="a b")


def test_a_recipe_may_name_a_function_only_where_code_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "steps.py").write_text(STEPS)
    with pytest.raises(RecipeError) as caught:
        Graph.from_yaml(tmp_path / "recipe.yaml")
    (problem,) = caught.value.problems
    assert problem.line == 5
    assert problem.message == "agent 'words' would run code: the function 'steps.py:words'"
    assert problem.hint == "if you trust this recipe, allow it with --allow-code, or allow_code=True in Python"
    said = ScriptedAgent("writer")
    result = Graph.from_yaml(tmp_path / "recipe.yaml", allow_code=True, create=scripted(said)).run(text="a b c")
    assert result.agents["words"].data == {"n": 3}
    assert said.turns == [{"text": "a b c", "words": '{"n": 3}'}]


def test_a_function_of_another_folder_needs_paths_too(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"the path '../steps.py' leads out of the recipe's folder"):
        Graph.from_yaml_text(RECIPE.replace("steps.py", "../steps.py"), tmp_path, allow_code=True)


def test_a_registered_function_is_written_into_the_recipe_by_its_module() -> None:
    graph = counting()
    graph.function(words, name="count")
    assert "function: " in (text := graph.to_yaml())
    assert ":words" in text
    graph = counting()
    graph.function(lambda: "", name="count")
    with pytest.raises(RecipeError, match="the function of agent 'count' can't be named in a recipe"):
        graph.to_yaml()


def test_code_may_add_a_function_to_a_recipe_that_names_none(tmp_path: Path) -> None:
    text = RECIPE.replace('  words: {function: "steps.py:words"}\n', "").replace(
        "{{ words.data.n }} words: {{ words }}", "x"
    )
    graph = Graph.from_yaml_text(text.replace("  - {from: words, to: writer}\n", "  []\n"), tmp_path, create=scripted())
    graph.function(words).__name__  # noqa: B018
    graph.add_edge("writer", "words")
    graph.output = "words"
    assert graph.run(text="a b").agents["words"].data == {"n": 2}


def test_copies_with_other_channels_keep_the_functions() -> None:
    graph = counting()
    graph.function(words, name="count")
    assert graph.with_channels("cache").run(text="a b").agents["count"].data == {"n": 2}


@pytest.mark.parametrize("error", [ValueError("half \ud83d"), RunError("half \ud83d")], ids=ascii)
def test_an_error_with_half_a_character_stands_in_the_result(error: Exception) -> None:
    graph = counting()

    @graph.function
    def count(text: str, reader: str) -> str:
        raise error

    with pytest.raises(RunError) as caught:
        graph.run(text="a")
    assert "half \ufffd" in str(Result.from_json(caught.value.result.to_json()).agents["count"].error)
