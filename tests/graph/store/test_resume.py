"""Going on with a run: what has finished is not done again, and nobody else is at it."""

import json
import os
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import anyio
import pytest
from sqlalchemy import update

from cachegraph import Graph, InputError, RunError
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.run.events import AgentFinished
from cachegraph.graph.run.turn_log import RecordedTurn
from cachegraph.graph.store import Store, run_owner
from cachegraph.graph.store.records import Setting
from cachegraph.graph.store.schema import runs

from .conftest import chain


def failed(store: Store, **parts: Any) -> str:
    with pytest.raises(RunError) as caught:
        chain(ScriptedAgent("b", fail=ValueError("no")), **parts).run(question="q", store=store)
    run: str = caught.value.result.run_id
    return run


def owned(store: Store, run: str, **who: Any) -> None:
    """As if a process were at work on the run, or had been when it was killed."""
    mine = {**json.loads(run_owner.me()), **who}
    beat = mine.pop("beat", time())
    with store._database.writing() as connection:
        values = {"owner": json.dumps(mine), "heartbeat": beat, "status": "running", "token": "theirs"}
        connection.execute(update(runs).where(runs.c.id == run).values(values))


def test_turns_that_have_finished_are_not_taken_again(store: Store) -> None:
    run = failed(store)
    agents = [ScriptedAgent(name) for name in "abc"]
    result = chain(*agents).resume(run, store=store)
    assert (result.status, result.text, result.run_id) == ("finished", "c(b(a(q)))", run)
    assert [len(agent.turns) for agent in agents] == [0, 1, 1]
    assert result.agents["a"].text == "a(q)"
    assert [turn.turn for turn in store.get(run).turns] == ["a", "b", "c"]
    assert store.get(run).outcome.error is None


def test_attempts_that_died_without_a_finished_turn_are_counted(store: Store) -> None:
    recorder = store.begin("g", "recipe", Setting({}, "."))

    def die() -> None:
        owned(store, recorder.run, pid=1 << 22)

    def starts() -> int:
        return store.get(recorder.run).outcome.starts

    assert starts() == 1
    for number in (2, 3):
        die()
        recorder = store.resume(recorder.run)
        assert starts() == number
    anyio.run(recorder.record, "a", RecordedTurn("done"))
    die()
    recorder = store.resume(recorder.run)
    assert starts() == 1
    die()
    store.resume(recorder.run).park()
    assert starts() == 0
    store.give_up(recorder.run, "no more")
    assert (store.get(recorder.run).status, store.get(recorder.run).outcome.error) == ("failed", "no more")


def test_a_run_is_gone_on_with_from_the_store_alone(store: Store) -> None:
    run = failed(store)
    graph = Graph.from_run(run[:6], store, create=scripted())
    assert graph.to_yaml() == store.get(run).recipe
    assert graph.resume(run[:6], store=store).text == "c(b(a(q)))"


def test_rows_of_a_map_are_runs_and_one_that_failed_goes_on(store: Store) -> None:
    broken = chain(ScriptedAgent("b", fail=ValueError("no")))
    results = broken.map([{"question": "x"}, {"question": "y"}], store=store, return_errors=True)
    assert {each.run_id for each in results} == {each.id for each in store.list()}
    assert [chain().resume(each.run_id or "", store=store).text for each in results] == ["c(b(a(x)))", "c(b(a(y)))"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_resumed_run_can_be_watched_and_tells_what_it_recalls(store: Store, backend: str) -> None:
    run = failed(store)
    seen: list[str] = []

    async def watch() -> None:
        stream = chain().stream_resumed(run, store=store)
        seen.extend([event.agent async for event in stream if isinstance(event, AgentFinished)])

    anyio.run(watch, backend=backend)
    assert seen == ["a", "b", "c"]


def test_a_run_of_another_recipe_is_refused(store: Store) -> None:
    run = failed(store)
    with pytest.raises(InputError, match=r"begun with another recipe than this graph's; Graph\.from_run"):
        chain(names="abcd").resume(run, store=store)


def test_a_finished_run_is_refused(store: Store) -> None:
    run = chain().run(question="q", store=store).run_id or ""
    with pytest.raises(InputError, match="has finished; `cachegraph runs show"):
        chain().resume(run, store=store)
    assert store.get(run).status == "finished"


def test_the_second_of_two_processes_is_refused(store: Store) -> None:
    run = failed(store)
    owned(store, run, pid=os.getppid(), since=run_owner._since(os.getppid()))
    assert store.get(run).status == "running"
    with pytest.raises(InputError, match=rf"at work in process {os.getppid()} on .*; wait for it, or end that process"):
        chain().resume(run, store=store)
    with pytest.raises(InputError, match="at work and can't be removed"):
        store.remove(run)
    assert store.prune(-1) == 0


@pytest.mark.parametrize(
    "who",
    [
        {"pid": 2**22 + 1},  # gone
        {"since": 1.0},  # gone, and its number is another process's now
        {"host": "elsewhere", "beat": 0.0},  # silent for very long
    ],
)
def test_what_a_dead_process_left_is_taken_over(store: Store, who: dict[str, Any]) -> None:
    run = failed(store)
    owned(store, run, **who)
    assert store.get(run).status == "interrupted"
    assert [each.id for each in store.list(status="interrupted")] == [run]
    assert store.list(status="running") == []
    assert chain().resume(run, store=store).text == "c(b(a(q)))"


def test_a_process_elsewhere_that_gave_a_sign_of_life_is_alive(store: Store) -> None:
    run = failed(store)
    owned(store, run, host="elsewhere")
    with pytest.raises(InputError, match="on 'elsewhere'"):
        chain().resume(run, store=store)


def test_a_process_that_was_taken_over_records_nothing_more(store: Store) -> None:
    class Robbed(ScriptedAgent):
        async def turn(self, turn: Any) -> Any:
            owned(store, store.list()[0].id, host="elsewhere")
            return await super().turn(turn)

    with pytest.raises(RunError, match="another process has taken it over") as caught:
        chain(Robbed("b")).run(question="q", store=store)
    kept = store.get(caught.value.result.run_id)
    assert [turn.turn for turn in kept.turns] == ["a"]
    assert kept.status == "running"  # theirs to end


def test_a_sign_of_life_is_given_during_a_long_turn(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachegraph.graph.store.writer.BEAT", 0.02)
    beats: set[float] = set()

    class Slow(ScriptedAgent):
        async def turn(self, turn: Any) -> Any:
            with anyio.fail_after(60):
                while len(beats) < 3:
                    with store._database.reading() as connection:
                        beats.add(connection.execute(runs.select()).one().heartbeat)
                    await anyio.sleep(0.01)
            return await super().turn(turn)

    chain(Slow("b")).run(question="q", store=store)
    assert len(beats) == 3


def test_a_run_that_was_cancelled_goes_on(store: Store) -> None:
    begun, never = anyio.Event(), anyio.Event()
    graph = chain(ScriptedAgent("b", gate=never, entered=begun))

    async def leave() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: graph.arun(question="q", store=store))
            await begun.wait()
            group.cancel_scope.cancel()

    anyio.run(leave)
    (run,) = store.list()
    assert (run.status, run.turns) == ("cancelled", 1)
    assert store.get(run.id).outcome.unfinished["b"].status == "cancelled"
    assert chain().resume(run.id, store=store).text == "c(b(a(q)))"


def test_runs_at_the_same_time_are_kept_apart(store: Store, tmp_path: Path) -> None:
    graph = chain()

    async def many() -> None:
        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(partial(graph.arun, question=str(number), store=store))

    anyio.run(many)
    found = [store.get(run.id) for run in store.list()]
    assert sorted(run.turns[-1].recorded.text or "" for run in found) == [f"c(b(a({number})))" for number in range(8)]
    assert not store._writer._held
