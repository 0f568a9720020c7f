"""Runs that wait for a person, for days if need be."""

from typing import Any

import anyio
import pytest

from cachegraph import Graph, InputError, RecipeError, RunError
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.run.events import AgentPaused, Event
from cachegraph.graph.store import Store

EDGES = [("draft", "ok"), ("draft", "send"), ("ok", "send"), ("draft", "aside"), ("aside", "send")]


def letter(*agents: ScriptedAgent, **parts: Any) -> Graph:
    """A draft, somebody who says whether it goes out, and one who works on meanwhile."""
    speakers = {name: {"model": "m", "prompt": name} for name in ("draft", "aside", "send")}
    return Graph(
        name="letter",
        inputs={"to": {}},
        agents={**speakers, "ok": {"pause": "{{ draft }}\n\nSend it to {{ to }}?"}, **parts.pop("agents", {})},
        edges=[{"from": one, "to": other} for one, other in parts.pop("edges", EDGES)],
        output="send",
        create=scripted(*agents),
        **parts,
    )


def test_a_run_pauses_with_its_question_and_goes_on_with_the_answer(store: Store) -> None:
    result = letter(ScriptedAgent("draft", "Dear all")).run(to="Ann", store=store)
    assert (result.status, result.text, result.error) == ("paused", "", None)
    assert result.agents["ok"].status == "paused"
    assert result.agents["ok"].prompt == "Dear all\n\nSend it to Ann?"
    assert [result.agents[name].status for name in ("draft", "aside", "send")] == [
        "finished",
        "finished",
        "not_started",
    ]
    run = result.run_id or ""
    assert store.get(run).status == "paused"
    assert store.get(run).outcome.unfinished["ok"].prompt == "Dear all\n\nSend it to Ann?"

    agents = [ScriptedAgent(name) for name in ("draft", "aside", "send")]
    later = Graph.from_run(run, store, create=scripted(*agents)).resume(run, answer="Yes, do.", store=store)
    assert (later.status, later.text) == ("finished", "send(Dear all, Yes, do., aside(Dear all))")
    assert [len(agent.turns) for agent in agents] == [0, 0, 1]
    assert store.get(run).status == "finished"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_question_is_an_event(store: Store, backend: str) -> None:
    events: list[Event] = []

    async def watch() -> None:
        events.extend([event async for event in letter().stream(to="Ann", store=store)])

    anyio.run(watch, backend=backend)
    (asked,) = [event for event in events if isinstance(event, AgentPaused)]
    assert (asked.agent, asked.question) == ("ok", "draft(Ann)\n\nSend it to Ann?")
    assert events[-1].type == "run_finished"


def test_an_answer_is_kept_even_if_what_follows_fails(store: Store) -> None:
    run = letter().run(to="Ann", store=store).run_id or ""
    broken = letter(ScriptedAgent("send", fail=ValueError("no paper")))
    with pytest.raises(RunError, match="no paper"):
        broken.resume(run, answer="yes", store=store)
    assert letter().resume(run, store=store).text == "send(draft(Ann), yes, aside(draft(Ann)))"


def test_a_paused_run_is_not_resumed_without_an_answer_nor_another_run_with_one(store: Store) -> None:
    run = letter().run(to="Ann", store=store).run_id or ""
    with pytest.raises(InputError, match=r"waits for an answer to 'ok': 'draft.*; give it with answer= or --answer"):
        letter().resume(run, store=store)
    with pytest.raises(InputError, match="no open question 'send'; there is ok"):
        letter().resume(run, answer="yes", turn="send", store=store)
    broken = letter(ScriptedAgent("draft", fail=ValueError("no")))
    with pytest.raises(RunError) as caught:
        broken.run(to="Ann", store=store)
    with pytest.raises(InputError, match=r"has no open question \(its status is 'failed'\)"):
        letter().resume(caught.value.result.run_id, answer="yes", store=store)


def test_of_several_questions_each_gets_its_own_answer(store: Store) -> None:
    def two() -> Graph:
        more = {"agents": {"when": {"pause": "When?"}}, "edges": [*EDGES, ("draft", "when"), ("when", "send")]}
        return letter(**more)

    run = two().run(to="Ann", store=store).run_id or ""
    with pytest.raises(InputError, match="asks several things; say whose question this answers: ok, when"):
        two().resume(run, answer="yes", store=store)
    half = two().resume(run, answer="at noon", turn="when", store=store)
    assert half.status == "paused"
    assert [half.agents[name].status for name in ("ok", "when")] == ["paused", "finished"]
    assert two().resume(run, answer="yes", store=store).text.endswith("yes, aside(draft(Ann)), at noon)")


def test_without_a_store_a_pause_is_refused_before_anybody_speaks() -> None:
    draft = ScriptedAgent("draft")
    with pytest.raises(InputError, match=r"agent 'ok' can't be asked: .* run it with a store \(`store=Store\(\)`"):
        letter(draft).run(to="Ann")
    assert not draft.turns


@pytest.mark.parametrize(
    ("question", "said"),
    [("{{ nobody }}?", "pause of agent 'ok' names 'nobody'"), ("{{ draft", "pause of agent 'ok'")],
)
def test_a_question_is_checked_like_any_prompt(question: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        letter(agents={"ok": {"pause": question}}).validate()


def test_of_two_answers_at_once_the_second_is_told_that_there_is_one(store: Store) -> None:
    run = letter().run(to="Ann", store=store).run_id or ""
    answers = {"ok": "yes"}
    store.resume(run, answers).park()
    with pytest.raises(InputError, match=f"the question 'ok' of run '{run}' has been answered meanwhile"):
        store.resume(run, answers)
    assert store.get(run).status == "interrupted"


@pytest.mark.anyio
async def test_a_run_that_two_tasks_enter_at_once_is_in_the_store_once(store: Store) -> None:
    stream, entered = letter().stream(to="Ann", store=store), list[str | None]()

    async def enter() -> None:
        entered.append(await stream.enter())

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(enter)
            group.start_soon(enter)
        async for _ in stream:
            pass
    assert entered == [run.id for run in store.list()] * 2
