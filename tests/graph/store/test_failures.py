"""What a run that did not end well leaves behind: who failed, why, and with what before it."""

import anyio
import pytest

from cachegraph import Graph, RecipeError, RunError
from cachegraph.agents.base import Reply, Turn
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.agents.token_budget import within_budget
from cachegraph.engine.spec import GenerateSpec
from cachegraph.graph.store import Store

from .conftest import chain


class Reading(ScriptedAgent):
    """Says what it was given to read, as real agents do."""

    async def turn(self, turn: Turn) -> Reply:
        assert turn.on_prompt is not None
        turn.on_prompt(f"the prompt of {self.name}")
        return await super().turn(turn)


def test_a_failed_agents_prompt_is_in_the_result_and_in_the_store(store: Store) -> None:
    graph = chain(Reading("a"), Reading("b", fail=ValueError("no idea")))
    with pytest.raises(RunError) as caught:
        graph.run(question="q", store=store)
    result = caught.value.result
    assert (result.agents["a"].prompt, result.agents["b"].prompt) == (None, "the prompt of b")
    assert store.get(result.run_id).outcome.unfinished["b"].prompt == "the prompt of b"


def test_a_timeout_is_kept_with_its_limit(store: Store) -> None:
    slow = ScriptedAgent("b", gate=anyio.Event())
    parts = chain(slow).spec.model_dump(by_alias=True)
    parts["agents"]["b"]["timeout"] = 0.01
    with pytest.raises(RunError) as caught:
        Graph.from_dict(parts, create=scripted(slow)).run(question="q", store=store)
    assert "timeout of 0.01 s" in (store.get(caught.value.result.run_id).outcome.unfinished["b"].error or "")


class Writing(ScriptedAgent):
    """Writes as many tokens as it may, and notes how many that were."""

    async def turn(self, turn: Turn) -> Reply:
        reply = await super().turn(turn)
        reply.tokens.generated = within_budget(GenerateSpec(max_new_tokens=40), turn).max_new_tokens
        return reply


def test_a_budget_of_tokens_cuts_the_last_reply_short_and_then_ends_the_run(store: Store) -> None:
    agents = [Writing(name) for name in "abcd"]
    with pytest.raises(RunError, match=r"agent 'd' failed: the tokens .* are used up \(limits\.max_tokens\)") as caught:
        chain(*agents, names="abcd", limits={"max_tokens": 100}).run(question="q", store=store)
    result = caught.value.result
    assert [result.agents[name].tokens.generated for name in "abcd"] == [40, 40, 20, 0]
    with pytest.raises(RunError, match="used up"):  # what was written before counts
        chain(*agents, names="abcd", limits={"max_tokens": 100}).resume(result.run_id, store=store)


def test_retry_is_refused_for_an_agent_that_runs_here() -> None:
    graph = chain()
    graph.add_agent("d", model="m", prompt="{{ c }}", retry={"max_attempts": 2}).add_edge("c", "d")
    graph.output = "d"
    with pytest.raises(RecipeError, match="agent 'd' runs on this machine, where nothing is tried again; remove it"):
        graph.validate()
