"""Checks by JSON Schemas: whatever one takes, timeouts, cancellation and other runs go their way."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from chat_server import DONE, USAGE, Server, piece, stream

from cachegraph import Graph, InputError, RunError
from cachegraph.agents.schema_threads import FEW_STEPS, run_checks
from cachegraph.common.schemas import TooMuchWork, budget, find_mismatch
from cachegraph.engine.spec import ModelSpec
from cachegraph.testing import Script

LIST = {"type": "array", "items": {"type": "integer"}}
COSTLY = {"type": "array", "items": {"anyOf": [{"const": number} for number in range(200, 0, -1)]}}
Make = Callable[[dict[str, ModelSpec], Path, str], Graph]


class Gate:
    """Checks in threads are held at their next step once the gate is closed; on the event loop none gets that far."""

    def __init__(self) -> None:
        self.closed, self.held, self._open = threading.Event(), threading.Event(), threading.Event()

    def spend(self, check: budget.CheckBudget, steps: int) -> None:
        if check.steps <= FEW_STEPS or check.is_stopped:
            raise TooMuchWork
        if self.closed.is_set():
            self.held.set()
            self._open.wait(100)

    def open(self) -> None:
        self.closed.clear()
        self._open.set()

    async def hold_one(self) -> None:
        """Return when a check is held; those that come later are not."""
        await anyio.to_thread.run_sync(self.held.wait, 60)
        self.closed.clear()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(budget.CheckBudget, "spend", lambda check, steps: gate.spend(check, steps))
    yield gate
    gate.open()


@pytest.fixture
def url() -> Iterator[str]:
    server = Server()
    server.script = [stream(piece("[1, 2]"), USAGE, DONE)]
    yield server.url
    server.close()


def local_reply(loaded: dict[str, ModelSpec], folder: Path, url: str) -> Graph:
    graph = Graph(models={"m": loaded["plain"]}, output="a")
    generate = {"max_new_tokens": 60, "json_schema": {"enum": ["yes", "no"]}}
    return graph.add_agent("a", model="m", prompt="Go.", generate=generate)


def remote_reply(loaded: dict[str, ModelSpec], folder: Path, url: str) -> Graph:
    graph = Graph(models={"m": {"base_url": url, "model": "m"}}, output="a")
    return graph.add_agent("a", model="m", prompt="Go.", generate={"json_schema": LIST})


def inputs(loaded: dict[str, ModelSpec], folder: Path, url: str) -> Graph:
    graph = Graph(output="a", inputs={"x": {"schema": LIST}}, create=Script({"a": "yes"}))
    return graph.add_agent("a", model="m", prompt="{{ x | join }}")


def inner_inputs(loaded: dict[str, ModelSpec], folder: Path, url: str) -> Graph:
    (folder / "inner.yaml").write_text(
        "version: 1\nname: x\ninputs: {n: {schema: {pattern: 'b+'}}}\n"
        "agents: {a: {model: m, prompt: '{{ n }}'}}\noutput: a\n"
    )
    (folder / "outer.yaml").write_text(
        "version: 1\nname: y\nagents: {i: {graph: inner.yaml, inputs: {n: abb}}}\noutput: i\n"
    )
    return Graph.from_yaml(folder / "outer.yaml", create=Script({"i/a": "yes", "a": "yes"}))


MAKES = [local_reply, remote_reply, inputs, inner_inputs]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_timeouts_cancellation_and_other_runs_act_while_a_value_is_checked(
    loaded: dict[str, ModelSpec], tmp_path: Path, url: str, gate: Gate, make: Make, backend: str
) -> None:
    async def act() -> None:
        graph = make(loaded, tmp_path, url)
        given = {name: [1] for name in graph.spec.inputs}
        async with graph:
            await graph.arun(given)
            with anyio.fail_after(60):
                gate.closed.set()
                async with anyio.create_task_group() as group:
                    group.start_soon(graph.arun, given)
                    await gate.hold_one()
                    assert (await graph.arun(given)).status == "finished"
                    group.cancel_scope.cancel()
        gate.open()

    anyio.run(act, backend=backend)


@pytest.mark.parametrize("make", [local_reply, remote_reply, inner_inputs])
def test_a_runs_timeout_ends_a_turn_whose_value_is_checked(
    loaded: dict[str, ModelSpec], tmp_path: Path, url: str, gate: Gate, make: Make
) -> None:
    async def act() -> None:
        graph = make(loaded, tmp_path, url)
        limits = graph.spec.limits.model_copy(update={"timeout": 0.2})
        async with graph.with_spec(graph.spec.model_copy(update={"limits": limits})) as limited:
            await limited.aopen()
            gate.closed.set()
            with anyio.fail_after(60), pytest.raises(RunError, match=r"limits\.timeout"):
                await limited.arun()
        gate.open()

    anyio.run(act)


@pytest.mark.anyio
async def test_the_event_loop_beats_while_a_costly_schema_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget.CheckBudget.__init__, "__defaults__", (100_000,))
    graph = Graph(output="a", inputs={"x": {"schema": COSTLY}}, create=Script({"a": "yes"}))
    graph.add_agent("a", model="m", prompt="{{ x | join }}")
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await anyio.lowlevel.checkpoint()
            beats += 1

    async with anyio.create_task_group() as group:
        group.start_soon(beat)
        await anyio.lowlevel.checkpoint()
        before = beats
        with pytest.raises(InputError, match="takes more than 500,000 steps"):
            await graph.arun(x=[1] * 50_000)
        assert beats - before > 10
        before = beats
        with pytest.raises(InputError, match="row 1: .*takes more than 500,000 steps"):
            await graph.amap([{"x": [1]}, {"x": [1] * 50_000}])
        assert beats - before > 10
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_check_that_nobody_waits_for_stops() -> None:
    begun, ended = threading.Event(), threading.Event()

    def check() -> None:
        begun.set()
        try:
            while True:
                find_mismatch(COSTLY, [1] * 100)
        finally:
            ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run_checks, check)
        await anyio.to_thread.run_sync(begun.wait, 60)
        group.cancel_scope.cancel()
    assert ended.wait(60)


@pytest.mark.anyio
async def test_what_takes_few_steps_is_checked_at_once() -> None:
    here = threading.current_thread()
    assert await run_checks(threading.current_thread) is here
    assert await run_checks(threading.current_thread, 10**6) is not here
    assert await run_checks(lambda: find_mismatch(LIST, [1, "2"])) == ("'2' is not of type 'integer'", "$[1]")


def test_many_costly_checks_of_one_group_have_a_budget_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget.CheckBudget.__init__, "__defaults__", (20_000,))
    with budget.CheckGroup().granting():
        for _ in range(3):
            wrong = find_mismatch(COSTLY, [1] * 300)
            assert wrong is not None
            assert "500,000 steps" in wrong.message
        assert find_mismatch(COSTLY, [1]) is None
