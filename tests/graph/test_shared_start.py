"""Runs that begin at once, also in several threads, share the agents and the edges of their graph."""

import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cachegraph import Graph, RunError
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph import clusters
from cachegraph.graph.plan.wiring import Wiring, wire
from cachegraph.graph.run import subgraph
from cachegraph.graph.run.agent_set import AgentSet
from cachegraph.graph.run.shared_wiring import SharedWiring

pytestmark = pytest.mark.anyio


def graph(create: Callable[..., ScriptedAgent]) -> Graph:
    agents = {name: {"model": "m", "prompt": "{{ q }}"} for name in "ab"}
    edges = [{"from": "a", "to": "b"}]
    return Graph(name="shared", inputs={"q": {}}, agents=agents, edges=edges, output="b", create=create)


def test_runs_in_two_threads_create_the_agents_once() -> None:
    created, threads = list[ScriptedAgent](), list[threading.Thread]()

    def create(name: str, *_: Any, **__: Any) -> ScriptedAgent:
        created.append(ScriptedAgent(name))
        if not threads:
            threads.append(threading.Thread(target=made.run, args=({"q": "2"},)))
            threads[0].start()
            threads[0].join(0.3)  # it waits for this one; otherwise it creates agents of its own
        return created[-1]

    made = graph(create)
    assert made.run(q="1").text == "b(a(1))"
    threads[0].join(60)
    assert [agent.name for agent in created] == ["a", "b"]
    assert len(created[1].turns) == 2
    made.close()
    assert [agent.closed for agent in created] == [1, 1]


class Host:
    """A cluster that creates scripted agents."""

    def creator(self, **_: Any) -> Callable[..., ScriptedAgent]:
        return scripted()

    def close(self) -> None: ...


def test_runs_in_two_threads_connect_to_a_cluster_once(monkeypatch: pytest.MonkeyPatch) -> None:
    connected, threads, made = list[str](), list[threading.Thread](), graph(scripted())

    def connect(cluster: str) -> Host:
        connected.append(cluster)
        if not threads:
            threads.append(threading.Thread(target=lambda: made.run(q="2", cluster="local")))
            threads[0].start()
            threads[0].join(0.3)  # it waits for this one; otherwise it connects, too
        return Host()

    monkeypatch.setattr(clusters, "connect", connect)
    assert made.run(q="1", cluster="local").text == "b(a(1))"
    threads[0].join(60)
    assert connected == ["local"]
    made.close()


async def test_runs_that_begin_at_once_decide_the_edges_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[object]()

    def counted(*parts: Any) -> Wiring:
        calls.append(parts)
        return wire(*parts)

    monkeypatch.setattr(subgraph, "wire", counted)
    made = graph(scripted())
    assert [result.text for result in await made.amap([{"q": str(n)} for n in range(8)])][7] == "b(a(7))"
    assert len(calls) == 1
    await made.aclose()
    await made.amap([{"q": "again"}] * 2)
    assert len(calls) == 2


async def test_a_run_that_is_cancelled_while_it_decides_the_edges_leaves_them_to_the_next() -> None:
    shared, agents, tries, decided = SharedWiring(), AgentSet({}), count(1), Wiring((), (), ())
    leaves, found = anyio.CancelScope(), list[Wiring]()

    async def decide() -> Wiring:
        if next(tries) == 1:
            await anyio.sleep_forever()
        return decided

    async def leave() -> None:
        with leaves:
            await shared.get(agents, decide)

    async def stay() -> None:
        found.append(await shared.get(agents, decide))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(leave)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(stay)
            leaves.cancel()
    assert found == [decided]


class SlowToOpen(ScriptedAgent):
    """Opens once `opens` is set, by any thread."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.reached, self.opens = threading.Event(), threading.Event()

    async def open(self) -> None:
        self.reached.set()
        while not self.opens.is_set():  # noqa: ASYNC110
            await anyio.sleep(0.005)
        await super().open()


def test_a_close_from_another_thread_ends_a_run_that_opens_the_agents() -> None:
    agent, said = SlowToOpen("a"), list[str]()
    made = graph(scripted(agent))

    def run() -> None:
        with pytest.raises(RunError) as caught:
            made.run(q="Hello?")
        said.append(str(caught.value))

    thread = threading.Thread(target=run)
    thread.start()
    assert agent.reached.wait(60)
    made.close()
    agent.opens.set()
    thread.join(60)
    assert said == ["the graph was closed while a run was opening its models; close it when its runs have ended"]
    assert agent.closed == 2
    assert made.run(q="Again?").text == "b(a(Again?))"


class SlowToClose(ScriptedAgent):
    """Closes once `closes` is set."""

    closes: anyio.Event | None = None

    async def close(self) -> None:
        if self.closes is not None:
            await self.closes.wait()
        await super().close()


async def test_agents_that_an_edit_replaces_during_a_close_are_closed_by_the_next() -> None:
    created = list[SlowToClose]()

    def create(name: str, *_: Any, **__: Any) -> SlowToClose:
        created.append(SlowToClose(name))
        return created[-1]

    made = await graph(create).aopen()
    created[0].closes = anyio.Event()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(made.aclose)
            await anyio.wait_all_tasks_blocked()
            made.output = {"second": "b", "first": "a"}
            await made.aopen()
            made.output = "b"
            created[0].closes.set()
        await made.aclose()
    assert [agent.closed for agent in created] == [1] * 4


async def test_a_run_does_not_begin_with_another_recipe_than_its_inputs_were_checked_for() -> None:
    made = graph(scripted())

    def edit(_: object) -> None:
        made.output = {"first": "a", "second": "b"}

    with pytest.raises(RunError, match="the graph was changed before this run began; run it again"):
        await made.amap([{"q": "1"}, {"q": "2"}], max_concurrent=1, on_result=edit)
    assert (await made.arun(q="3")).text == "a(3)"
