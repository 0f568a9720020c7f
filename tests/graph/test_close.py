"""Graphs that are closed while runs begin or are at work."""

from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest
from tiny import config_of, save_model, save_tokenizer

from cachegraph import CachegraphError, Graph, ModelError, RunError
from cachegraph.agents.base import Reply, Turn
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.engine.engine import Engine
from cachegraph.engine.sampling.sampler import Sampler

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(config_of("llama"), folder)
    save_tokenizer(folder)
    return folder


def graph(model: Path) -> Graph:
    agent = {"model": "m", "prompt": "{{ q }}", "generate": {"max_new_tokens": 8, "ignore_eos": True}}
    reader = {"model": "m", "prompt": "{{ a }} so", "generate": {"max_new_tokens": 8, "ignore_eos": True}}
    return Graph(
        name="closing",
        models={"m": {"source": str(model), "dtype": "float32", "device": "cpu"}},
        inputs={"q": {}},
        agents={"a": agent, "b": reader},
        edges=[{"from": "a", "to": "b", "channel": "cache"}],
        output="b",
    )


@pytest.mark.parametrize("steps", [0, 1, 3, 10, 40, 200])
async def test_closing_while_runs_begin_or_go_on_is_a_sentence_and_the_graph_works_again(
    model: Path, steps: int
) -> None:
    made, outcomes = graph(model), []

    async def run(number: int) -> None:
        try:
            outcomes.append((await made.arun(q=f"Why {number}?")).status)
        except CachegraphError as error:
            assert "Assertion" not in str(error)  # noqa: PT017
            outcomes.append("failed")

    with anyio.fail_after(200):
        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(run, number)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            await made.aclose()
            group.start_soon(made.aclose)
            group.start_soon(made.aclose)
        assert len(outcomes) == 4
        assert (await made.arun(q="Again?")).status == "finished"
        await made.aclose()


class Strict(ScriptedAgent):
    """Takes turns only while it is open. It opens and closes once its events are set."""

    def __init__(self, name: str, opens: anyio.Event | None = None, closes: anyio.Event | None = None):
        super().__init__(name)
        self.opens, self.closes, self.reached, self.is_open = opens, closes, anyio.Event(), False

    async def open(self) -> None:
        self.reached.set()
        if self.opens is not None:
            await self.opens.wait()
        self.is_open = True

    async def turn(self, turn: Turn) -> Reply:
        assert self.is_open
        return await super().turn(turn)

    async def close(self) -> None:
        if self.closes is not None:
            await self.closes.wait()
        self.is_open = False


def strict(*agents: Strict) -> Graph:
    return Graph(
        name="closing",
        agents={each.name: {"model": "m", "prompt": each.name} for each in agents},
        output={each.name: each.name for each in agents},
        create=scripted(*agents),
    )


async def test_a_close_between_the_opening_of_two_agents_ends_that_run_and_not_the_next() -> None:
    gate = anyio.Event()
    first, second = Strict("a"), Strict("b", opens=gate)
    made, said = strict(first, second), list[str]()

    async def run() -> None:
        with pytest.raises(RunError) as caught:
            await made.arun()
        said.append(str(caught.value))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await second.reached.wait()
            await anyio.wait_all_tasks_blocked()
            assert first.is_open
            await made.aclose()
            gate.set()
        assert said == ["the graph was closed while a run was opening its models; close it when its runs have ended"]
        assert not first.is_open
        assert not second.is_open
        assert (await made.arun()).status == "finished"
        await made.aclose()


async def test_a_run_that_begins_while_its_graph_is_being_closed_opens_it_again() -> None:
    gate = anyio.Event()
    made = strict(Strict("a"), Strict("b", closes=gate))
    await made.aopen()
    statuses = list[str]()

    async def run() -> None:
        statuses.append((await made.arun()).status)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(made.aclose)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(run)
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            gate.set()
        assert statuses == ["finished"]
        await made.aclose()


async def test_an_agent_that_fails_to_open_leaves_the_agents_open_for_another_run() -> None:
    first, second = Strict("a"), Strict("b")
    made, tries, gate = strict(first, second), count(), anyio.Event()
    opens = second.open

    async def fails_once() -> None:
        if next(tries) == 0:
            await gate.wait()
            raise ModelError("no memory left")
        await opens()

    second.open = fails_once  # type: ignore[method-assign]
    outcomes = list[str]()

    async def run() -> None:
        with pytest.raises(ModelError):
            await made.arun()
        outcomes.append("failed")

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            await made.aopen()
            gate.set()
        assert outcomes == ["failed"]
        assert first.is_open
        assert (await made.arun()).status == "finished"
        await made.aclose()


async def test_runs_that_open_an_agent_at_once_all_use_its_chat_template(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, reached, calls, original = anyio.Event(), anyio.Event(), count(), Engine.sampler

    async def slow_at_first(self: Engine, *parts: Any) -> Sampler:
        if next(calls) == 0:
            reached.set()
            await gate.wait()
        return await original(self, *parts)

    monkeypatch.setattr(Engine, "sampler", slow_at_first)
    made, read = graph(model), list[list[int]]()

    async def run() -> None:
        done = (await made.arun(q="Why?")).agents
        read.append([each.tokens.prefilled + each.tokens.reused for each in done.values()])

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await reached.wait()
            await run()
            gate.set()
        await made.aclose()
    assert read[0] == read[1]
