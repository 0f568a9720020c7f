"""Texts are made in threads: whatever a template does meanwhile, timeouts, cancellation and other runs go their way."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import anyio
import anyio.to_thread
import pytest
from jinja2.exceptions import TemplateRuntimeError
from tiny import CHATML

from cachegraph import Graph, RunError
from cachegraph.agents.prompt.expression import compile_expression
from cachegraph.agents.prompt.render_threads import TextWork
from cachegraph.agents.prompt.template import compile_template
from cachegraph.common import template_budget
from cachegraph.common.template_budget import render_budget, spend
from cachegraph.engine.spec import ModelSpec
from cachegraph.testing import Script

LOOP = "{% for each in range(9) %}{{ each }}{% endfor %}"
Make = Callable[[dict[str, ModelSpec], Path], Graph]


class Gate:
    """Templates that are held at their next step once the gate is closed."""

    def __init__(self) -> None:
        self.closed, self.held, self._open = threading.Event(), threading.Event(), threading.Event()

    def spend(self, work: int = 0) -> None:
        if self.closed.is_set():
            self.held.set()
            self._open.wait(100)

    def open(self) -> None:
        self.closed.clear()
        self._open.set()

    async def hold_one(self) -> None:
        """Return when a template is held; those that come later are not."""
        await anyio.to_thread.run_sync(self.held.wait, 60)
        self.closed.clear()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(template_budget.Budget, "spend", lambda self, work=0: gate.spend(work))
    yield gate
    gate.open()


def chat_template(loaded: dict[str, ModelSpec], folder: Path) -> Graph:
    (folder / "burns.jinja").write_text(LOOP + CHATML)
    model = loaded["small"].model_copy(update={"chat_template": "burns.jinja"})
    graph = Graph(models={"m": model}, output="a", folder=folder)
    return graph.add_agent("a", model="m", prompt="Go.", generate={"max_new_tokens": 2})


def prompt(loaded: dict[str, ModelSpec], folder: Path) -> Graph:
    graph = Graph(models={"m": loaded["plain"]}, output="a")
    return graph.add_agent("a", model="m", prompt=f"Go {LOOP}", generate={"max_new_tokens": 2})


def question(loaded: dict[str, ModelSpec], folder: Path) -> Graph:
    graph = Graph(models={"m": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}}, output="a")
    return graph.add_agent("a", model="m", prompt=f"Go {LOOP}", generate={"max_new_tokens": 0})


def condition(loaded: dict[str, ModelSpec], folder: Path) -> Graph:
    graph = Graph(output={"a": "a", "b": "b"}, create=Script({"a": "yes", "b": "no"}))
    graph.add_agent("a", model="m", prompt="a").add_agent("b", model="m", prompt="b")
    return graph.add_edge("a", "b", when="'y-e-s' == a | replace('e', '-e-')")


def items(loaded: dict[str, ModelSpec], folder: Path) -> Graph:
    graph = Graph(output="a", create=Script({"a": "yes"}))
    return graph.add_agent("a", model="m", prompt="{{ n }}", for_each="{{ range(2) }}", **{"as": "n"})


def inner_inputs(loaded: dict[str, ModelSpec], folder: Path) -> Graph:
    inner = "version: 1\nname: x\ninputs: {n: {}}\nagents: {a: {model: m, prompt: '{{ n }}'}}\noutput: a\n"
    (folder / "inner.yaml").write_text(inner)
    (folder / "outer.yaml").write_text(
        "version: 1\nname: y\nagents: {i: {graph: inner.yaml, inputs: {n: '" + LOOP + "'}}}\noutput: i\n"
    )
    return Graph.from_yaml(folder / "outer.yaml", create=Script({"i/a": "yes", "a": "yes"}))


@pytest.mark.parametrize("make", [chat_template, prompt, question, condition, items, inner_inputs])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_timeouts_cancellation_and_other_runs_act_while_a_template_is_at_work(
    loaded: dict[str, ModelSpec], tmp_path: Path, gate: Gate, make: Make, backend: str
) -> None:
    async def act() -> None:
        graph = make(loaded, tmp_path)
        limits = graph.spec.limits.model_copy(update={"timeout": 0.2})
        limited = graph.with_spec(graph.spec.model_copy(update={"limits": limits}))
        async with graph, limited:
            await graph.arun()
            gate.closed.set()
            with anyio.fail_after(60):
                with pytest.raises(RunError, match=r"limits\.timeout"):
                    await limited.arun()
                gate.held.clear()
                async with anyio.create_task_group() as group:
                    group.start_soon(graph.arun)
                    await gate.hold_one()
                    assert (await graph.arun()).status == "finished"
                    group.cancel_scope.cancel()
        gate.open()

    anyio.run(act, backend=backend)


@pytest.mark.parametrize("make", [chat_template, prompt, question])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_agents_timeout_ends_a_turn_whose_template_is_at_work(
    loaded: dict[str, ModelSpec], tmp_path: Path, gate: Gate, make: Make, backend: str
) -> None:
    async def act() -> None:
        graph = make(loaded, tmp_path)
        agents = {name: each.model_copy(update={"timeout": 0.2}) for name, each in graph.spec.agents.items()}
        async with graph.with_spec(graph.spec.model_copy(update={"agents": agents})) as limited:
            gate.closed.set()
            with anyio.fail_after(60), pytest.raises(RunError, match=r"agents\.a\.timeout"):
                await limited.arun()
        gate.open()

    anyio.run(act, backend=backend)


@pytest.mark.anyio
async def test_a_template_that_nobody_waits_for_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_budget, "time", SimpleNamespace(thread_time=lambda: 1.0))
    begun, ended = threading.Event(), threading.Event()

    def render() -> None:
        try:
            with render_budget(10**12):
                while True:
                    begun.set()
                    spend()
        finally:
            ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(TextWork().run, render)
        await anyio.to_thread.run_sync(begun.wait, 60)
        group.cancel_scope.cancel()
    assert ended.wait(60)


@pytest.mark.anyio
async def test_all_renders_of_a_turn_share_one_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(template_budget, "time", SimpleNamespace(thread_time=lambda: now))

    def render() -> None:
        nonlocal now
        with render_budget():
            now += 0.9
            spend()

    work = TextWork()
    await work.run(render)
    await work.run(render)
    with pytest.raises(TemplateRuntimeError, match="one turn run for more than 2 s together"):
        await work.run(render)
    await TextWork().run(render)  # another turn has its own


@pytest.mark.parametrize(
    "source", ["{{ x }} and {{ y.data.z | trim | upper }}", "{% if x %}{{ x + y }}{% endif %}", "plain"]
)
def test_templates_without_loops_are_known_to_take_no_time(source: str) -> None:
    assert compile_template(source, None).bounded


@pytest.mark.parametrize("source", [LOOP, "{{ x * 9 }}", "{{ x | replace('a', 'b') }}", "{{ range(9) | join }}"])
def test_templates_that_may_take_time_are_rendered_in_a_thread(source: str) -> None:
    assert not compile_template(source, None).bounded


def test_conditions_are_bounded_as_templates_are() -> None:
    assert compile_expression("'yes' in x | lower and y.data.score >= 7", None).bounded
    assert not compile_expression("x.split('a')", None).bounded
