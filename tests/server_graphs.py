"""Graphs that tests serve."""

import threading
from pathlib import Path
from typing import Any

import anyio

from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.graph import Graph
from cachegraph.testing import tiny_model

__all__ = ["Gate", "asking", "gated", "held", "scripted_duo", "tiny_duo", "tiny_solo", "tiny_team", "wordy"]


def scripted_duo(*agents: ScriptedAgent, **parts: Any) -> Graph:
    """Two agents that follow a script, joined by a text edge; by default they say what they were sent."""
    graph = Graph(name="duo", create=scripted(*agents), **parts)
    graph.add_input("question", "A question.")
    graph.add_agent("expert", model="m", prompt="{{ question }}")
    graph.add_agent("answerer", model="m", prompt="{{ expert }} {{ question }}")
    graph.add_edge("expert", "answerer")
    graph.output = "answerer"
    return graph


def asking() -> Graph:
    """A graph that asks a person, and then says what it heard."""
    graph = Graph(name="asking", create=scripted(ScriptedAgent("last")))
    graph.add_input("question")
    graph.add_agent("person", pause="{{ question }}")
    graph.add_agent("last", model="m", prompt="{{ person }}").add_edge("person", "last")
    graph.output = "last"
    return graph


def wordy() -> Graph:
    """A graph without edges, whose names are longer than their box."""
    graph = Graph(name="wordy", create=scripted())
    graph.add_input("question")
    name = "an_agent_with_a_name_that_says_all_that_it_does_and_for_whom"
    graph.add_agent(name, model="some-organisation/a-model-with-a-long-name-1.5B-instruct", prompt="{{ question }}")
    graph.output = name
    return graph


def tiny_solo(name: str = "solo", **agent: Any) -> Graph:
    """One agent of a tiny model with random weights."""
    graph = Graph(name=name, models={"tiny": {"source": tiny_model(), "dtype": "float32", "device": "cpu"}})
    graph.add_input("question")
    entry = {"model": "tiny", "prompt": "{{ question }}", "generate": {"max_new_tokens": 12}}
    graph.add_agent("a", **{**entry, **agent})
    graph.output = "a"
    return graph


def tiny_duo(name: str = "pair", channel: Any = "cache") -> Graph:
    """A reader whose cache is grafted into a writer of the same tiny model."""
    graph = Graph(name=name, models={"tiny": {"source": tiny_model(), "dtype": "float32", "device": "cpu"}})
    graph.add_input("story")
    graph.add_input("question", default="what?")
    graph.add_agent("reader", model="tiny", prompt="{{ story }}", generate={"max_new_tokens": 0})
    graph.add_agent("writer", model="tiny", prompt="{{ reader }} {{ question }}", generate={"max_new_tokens": 6})
    graph.add_edge("reader", "writer", channel)
    graph.output = "writer"
    return graph


def tiny_team(folder: Path, *, asks: bool = False) -> Graph:
    """A recipe that includes the one of `tiny_duo`, a file in `folder`; if it `asks`, a person ends it."""
    tiny_duo().to_yaml(folder / "pair.yaml")
    graph = Graph(name="outer", folder=folder)
    graph.add_input("story")
    graph.add_agent("team", graph="pair.yaml", inputs={"story": "{{ story }}"})
    graph.output = "team"
    if asks:
        graph.add_agent("person", pause="{{ team }}?").add_edge("team", "person")
        graph.output = "person"
    return graph


class Gate:
    """An agent that does not answer until it is let to; which it is from the tests' thread."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.cancelled = 0

    async def __call__(self) -> str:
        self.entered.release()
        try:
            while not self.open.is_set():  # noqa: ASYNC110  (another thread sets it)
                await anyio.sleep(0.005)
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        return "at last"


def held(gate: Gate, reply: str) -> Graph:
    """`scripted_duo`, whose first agent gives this reply, and whose second one waits before it answers."""
    answerer = ScriptedAgent("answerer")
    answers = answerer.turn

    async def turn(turn: Any) -> Any:
        await gate()
        return await answers(turn)

    answerer.turn = turn  # type: ignore[method-assign]
    return scripted_duo(ScriptedAgent("expert", reply), answerer)


def gated(gate: Gate) -> Graph:
    graph = Graph(name="duo")
    graph.add_input("question")

    @graph.function
    async def answerer(question: str) -> str:
        return await gate()

    graph.output = "answerer"
    return graph
