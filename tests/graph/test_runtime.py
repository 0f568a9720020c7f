"""Order, concurrency, failure, timeouts and cancellation of runs, with agents that follow a script."""

import gc
import weakref
from collections.abc import Callable
from typing import Any, Literal

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from cachegraph import ConfigError, Graph, RunError
from cachegraph.agents.base import Reply, Turn
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.payload import Route
from cachegraph.graph.plan import wiring
from cachegraph.graph.run.events import AgentCancelled, AgentFailed, Event
from cachegraph.graph.run.run import Run
from cachegraph.graph.run.turn_log import RecordedTurn
from cachegraph.testing import FakeClock

pytestmark = pytest.mark.anyio
Backend = Literal["asyncio", "trio"]


def build(edges: str, *agents: ScriptedAgent, output: str, **parts: Any) -> Graph:
    """A graph from a drawing such as 'a>b a>c': scripted agents, text edges."""
    pairs = [tuple(edge.split(">")) for edge in edges.split()]
    names = dict.fromkeys([name for pair in pairs for name in pair] or [output])
    specs = {name: {"model": "m", "prompt": name, **parts.pop(name, {})} for name in names}
    return Graph(
        name="test",
        agents=specs,
        edges=[{"from": sender, "to": receiver} for sender, receiver in pairs],
        output=output,
        create=scripted(*agents),
        **parts,
    )


async def test_an_agent_starts_when_all_it_waits_for_has_arrived() -> None:
    result = await build("a>b a>c b>d c>d", output="d").arun()
    assert result.text == "d(b(a()), c(a()))"
    assert result.status == "finished"
    assert set(result.edges) == {("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")}


async def test_messages_arrive_in_the_order_of_the_recipe_whatever_finishes_first() -> None:
    gate = anyio.Event()
    last = ScriptedAgent("d", lambda turn: ",".join(each.payload.sender for each in turn.deliveries))
    done = ScriptedAgent("c", lambda turn: gate.set() or "c")  # type: ignore[func-returns-value]
    graph = build("b>d a>d c>d", ScriptedAgent("b", gate=gate), done, last, output="d")
    with anyio.fail_after(60):
        assert (await graph.arun()).text == "b,a,c"


async def test_independent_agents_are_at_work_at_the_same_time() -> None:
    here, there = anyio.Event(), anyio.Event()
    one = ScriptedAgent("b", gate=here, entered=there)
    other = ScriptedAgent("c", gate=there, entered=here)  # each waits for the other to have begun
    with anyio.fail_after(60):
        result = await build("a>b a>c b>d c>d", one, other, output="d").arun()
    assert result.status == "finished"


async def test_no_more_agents_are_at_work_than_the_limit_allows() -> None:
    busy: list[int] = []

    class Counting(ScriptedAgent):
        at_work = 0

        async def turn(self, turn: Turn) -> Reply:
            Counting.at_work += 1
            busy.append(Counting.at_work)
            await checkpoint()
            Counting.at_work -= 1
            return await super().turn(turn)

    agents = [Counting(f"w{i}") for i in range(6)]
    edges = " ".join(f"{agent.name}>end" for agent in agents)
    result = await build(edges, *agents, output="end", limits={"max_concurrent": 2}).arun()
    assert result.status == "finished"
    assert max(busy) == 2


async def test_of_agents_that_could_start_the_one_furthest_from_the_output_does() -> None:
    order: list[str] = []

    def noted(name: str) -> ScriptedAgent:
        return ScriptedAgent(name, lambda turn: order.append(name) or name)  # type: ignore[func-returns-value]

    graph = build(
        "s>near near>out s>far far>mid mid>out",
        *map(noted, ["near", "far"]),
        output="out",
        limits={"max_concurrent": 1},
    )
    await graph.arun()
    assert order == ["far", "near"]


async def test_stop_ends_the_run_and_cancels_agents_at_work() -> None:
    begun, never = anyio.Event(), anyio.Event()
    slow = ScriptedAgent("slow", gate=never, entered=begun)
    bad = ScriptedAgent("bad", gate=begun, fail=ValueError("no idea"))
    graph = build("a>slow a>bad slow>out bad>out", slow, bad, output="out")
    with anyio.fail_after(60), pytest.raises(RunError, match="agent 'bad' failed: ValueError: no idea") as caught:
        await graph.arun()
    statuses = {name: agent.status for name, agent in caught.value.result.agents.items()}
    assert statuses == {"a": "finished", "slow": "cancelled", "bad": "failed", "out": "cancelled"}
    assert caught.value.result.agents["a"].text == "a()"
    assert isinstance(caught.value.__cause__, ValueError)


async def test_continue_cancels_only_what_depends_on_the_failed_agent() -> None:
    failed, gate = ScriptedAgent("bad", fail=ValueError("no")), anyio.Event()
    other = ScriptedAgent("other", gate=gate)
    graph = build("bad>next next>out other>more more>out", failed, other, output="out", on_error="continue")
    events: list[Event] = []

    async def watch() -> None:
        async for event in graph.stream():
            events.append(event)
            if isinstance(event, AgentFailed):
                gate.set()

    with anyio.fail_after(60), pytest.raises(RunError) as caught:
        await watch()
    result = caught.value.result
    assert result.agents["more"].text == "more(other())"
    assert [result.agents[name].status for name in ("bad", "next", "out")] == ["failed", "cancelled", "cancelled"]
    assert [event.agent for event in events if isinstance(event, AgentCancelled)] == ["next", "out"]
    assert "'bad'" in (result.agents["out"].error or "")


async def test_continue_gives_a_partial_result_if_the_output_agent_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    # Recipes refuse agents that nobody reads, so the side branch exists only without that check.
    monkeypatch.setattr("cachegraph.graph.definition.check_spec", lambda *_: None)
    graph = build("a>out a>side", ScriptedAgent("side", fail=ValueError("no")), output="out", on_error="continue")
    result = await graph.arun()
    assert (result.status, result.text) == ("partial", "out(a())")
    assert result.error == "agent 'side' failed: ValueError: no"


def test_an_agent_that_takes_too_long_is_named_with_its_limit(anyio_backend: Backend) -> None:
    graph = build("a>b", ScriptedAgent("b", gate=anyio.Event()), output="b", b={"timeout": 30})
    with pytest.raises(RunError, match=r"agent 'b' .* timeout of 30 s \(agents\.b\.timeout\)"):
        FakeClock(backend=anyio_backend).run(graph.arun)


async def test_an_agents_own_timeout_error_is_not_taken_for_ours() -> None:
    with pytest.raises(RunError, match="TimeoutError: the disk"):
        await build("", ScriptedAgent("a", fail=TimeoutError("the disk")), output="a", a={"timeout": 60}).arun()


def test_a_run_that_takes_too_long_says_who_was_at_work(anyio_backend: Backend) -> None:
    graph = build("a>b", ScriptedAgent("b", gate=anyio.Event()), output="b", limits={"timeout": 30})
    with pytest.raises(RunError, match=r"limit of 30 s \(limits\.timeout\) with 'b'") as caught:
        FakeClock(backend=anyio_backend).run(graph.arun)
    assert caught.value.result.agents["a"].text == "a()"
    assert caught.value.result.agents["b"].status == "cancelled"


async def test_the_callers_cancel_scope_ends_the_run() -> None:
    begun = anyio.Event()
    stream = build("a>b", ScriptedAgent("b", gate=anyio.Event(), entered=begun), output="b").stream()

    async def read() -> None:
        async for _ in stream:
            pass

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await begun.wait()
            assert stream.result.status == "running"
            assert stream.result.agents["b"].status == "running"
            group.cancel_scope.cancel()
    assert stream.result.status == "cancelled"
    assert stream.result.agents["a"].text == "a()"
    assert stream.result.agents["b"].status == "cancelled"


async def test_a_thousand_agents_in_a_chain_are_no_deeper_than_two() -> None:
    edges = " ".join(f"n{i}>n{i + 1}" for i in range(999))
    last = ScriptedAgent("n999", "done")
    agents = [ScriptedAgent(f"n{i}", "x") for i in range(999)]
    assert (await build(edges, *agents, last, output="n999").arun()).text == "done"


async def test_agents_that_never_wait_leave_others_their_turn() -> None:
    edges = " ".join(f"n{i}>n{i + 1}" for i in range(99))
    seen: list[int] = []
    agents = [ScriptedAgent(f"n{i}", "x") for i in range(100)]

    async def watch() -> None:
        while True:
            seen.append(sum(bool(agent.turns) for agent in agents))
            await checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await build(edges, *agents, output="n99").arun()
        group.cancel_scope.cancel()
    assert any(0 < count < 100 for count in seen)


async def test_an_agent_that_can_not_open_fails_before_anybody_speaks() -> None:
    first = ScriptedAgent("a")
    graph = build("a>b", first, ScriptedAgent("b", fail_open=ConfigError("no key")), output="b")
    with pytest.raises(ConfigError, match="^no key$"):
        await graph.arun()
    assert not first.turns


class Plane(SentCache):
    """Stands for a KV cache whose life is watched."""


def caching(born: "list[weakref.ref[Plane]]") -> Callable[[], Plane]:
    def make() -> Plane:
        plane = Plane((), (), (), "m", "a")
        born.append(weakref.ref(plane))
        return plane

    return make


def cache_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "_route", lambda edge, *_: Route(edge, "both", needs_cache=edge.channel == "cache"))


def alive(born: "list[weakref.ref[Plane]]") -> int:
    return sum(ref() is not None for ref in born)


async def test_a_cache_is_freed_as_soon_as_its_last_receiver_has_taken_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache_everything(monkeypatch)
    born: list[weakref.ref[Plane]] = []
    begun, gate = anyio.Event(), anyio.Event()
    agents = [
        ScriptedAgent("a", cache=caching(born)),
        ScriptedAgent("slow", gate=gate, entered=begun),
        ScriptedAgent("late", lambda turn: str(alive(born))),
    ]
    graph = build("a>quick a>slow slow>late quick>late", *agents, output="late").with_channels(
        {("a", "quick"): "cache", ("a", "slow"): "cache"}
    )
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            texts: list[str] = []

            async def run() -> None:
                texts.append((await graph.arun()).text)

            group.start_soon(run)
            await begun.wait()
            await wait_all_tasks_blocked()
            assert alive(born) == 1  # slow still reads it
            gate.set()
    assert texts == ["0"]


async def test_a_reader_of_words_keeps_no_cache_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    cache_everything(monkeypatch)
    born: list[weakref.ref[Plane]] = []
    begun, gate = anyio.Event(), anyio.Event()
    agents = [ScriptedAgent("a", cache=caching(born)), ScriptedAgent("words", gate=gate, entered=begun)]
    graph = build("a>words a>caches words>out caches>out", *agents, output="out").with_channels(
        {("a", "caches"): "cache"}
    )
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(graph.arun)
            await begun.wait()
            await wait_all_tasks_blocked()
            assert len(born) == 1
            assert alive(born) == 0
            gate.set()


@pytest.mark.parametrize("how", ["failure", "timeout", "cancelled"])
def test_a_run_that_ends_badly_keeps_no_cache(
    monkeypatch: pytest.MonkeyPatch, how: str, anyio_backend: Backend
) -> None:
    cache_everything(monkeypatch)
    born: list[weakref.ref[Plane]] = []
    begun = anyio.Event()
    fails = how == "failure"
    receiver = ScriptedAgent(
        "b", gate=None if fails else anyio.Event(), entered=begun, fail=ValueError("no") if fails else None
    )
    limits = {"timeout": 30} if how == "timeout" else {}
    graph = build("a>b a>c b>c", ScriptedAgent("a", cache=caching(born)), receiver, output="c", limits=limits)
    graph = graph.with_channels("cache")
    errors: list[RunError] = []  # kept, with all that their tracebacks hold

    async def run() -> None:
        try:
            await graph.arun()
        except RunError as error:
            errors.append(error)

    async def begin() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await begun.wait()
            if how == "cancelled":
                group.cancel_scope.cancel()

    FakeClock(backend=anyio_backend).run(begin)
    assert len(errors) == (how != "cancelled")
    assert len(born) == 1
    gc.collect()  # what an exception has passed through is in cycles
    assert alive(born) == 0


async def test_a_journal_is_asked_before_a_turn_and_told_after_it() -> None:
    class Memory:
        run = "1"
        turns = {"a": RecordedTurn("remembered", data={"n": 1})}  # noqa: RUF012

        def recall(self, turn: str) -> RecordedTurn | None:
            return self.turns.get(turn)

        async def record(self, turn: str, recorded: RecordedTurn) -> None:
            self.turns[turn] = recorded

        def asked(self, turn: str, question: str) -> None: ...

    first, memory = ScriptedAgent("a"), Memory()
    graph = build("a>b", first, ScriptedAgent("b", data=[2]), output="b")
    result = await Run(graph.spec, {}, graph.awire, turn_log=memory).execute()
    assert not first.turns
    assert result.text == "b(remembered)"
    assert (result.agents["a"].data, result.agents["b"].data) == ({"n": 1}, [2])
    assert memory.turns["b"].text == "b(remembered)"


async def test_messages_know_their_turn_and_carry_data() -> None:
    seen: list[tuple[str, Any]] = []

    def note(turn: Turn) -> str:
        seen.extend((delivery.payload.turn, delivery.payload.data) for delivery in turn.deliveries)
        return ""

    last = ScriptedAgent("b", note)
    await build("a>b", ScriptedAgent("a", data={"kind": "bug"}), last, output="b").arun()
    assert seen == [("a", {"kind": "bug"})]
