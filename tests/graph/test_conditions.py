"""Conditions, routes and joins: who runs, who is skipped, and what the others hear."""

from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachegraph import Graph, RunError
from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.graph.run.events import AgentSkipped, Event
from cachegraph.graph.run.result import Result

from .flow import Edges, build, heard, says

pytestmark = pytest.mark.anyio


def statuses(result: Result) -> dict[str, str]:
    return {name: agent.status for name, agent in result.agents.items()}


async def test_an_edge_whose_condition_is_false_hands_nothing_over() -> None:
    agent, turns = heard("out")
    edges: Edges = ["a>out", {"edge": "b>out", "when": "'yes' in b"}]
    for reply, expected in (("yes!", {"a": "A", "b": "yes!"}), ("no", {"a": "A"})):
        await build(edges, says("a", "A"), says("b", reply), agent, output="out").arun()
        assert turns()[-1] == expected


async def test_conditions_read_inputs_data_and_agents_upstream() -> None:
    edges: Edges = ["a>b", {"edge": "b>c", "when": "a.data.n > 1 and topic == 'x' and b"}, "c>d", "a>d"]
    graph = build(edges, says("a", "A", data={"n": 2}), output="d", inputs=["topic"])
    assert statuses(await graph.arun(topic="x"))["c"] == "finished"
    assert statuses(await graph.arun(topic="y"))["c"] == "skipped"


async def test_skipping_goes_on_and_a_join_does_not_wait_for_it() -> None:
    edges: Edges = ["a>b", {"edge": "b>c", "when": "false"}, "c>d", "d>e", "b>e"]
    agent, turns = heard("e")
    events: list[Event] = []
    async for event in (graph := build(edges, agent, output="e")).stream():
        events.append(event)
    assert [event.agent for event in events if isinstance(event, AgentSkipped)] == ["c", "d"]
    assert list(turns()[0]) == ["b"]
    result = await graph.arun()
    assert (result.status, statuses(result)["d"]) == ("finished", "skipped")
    assert ("c", "d") not in result.edges


ROUTES = [{"when": "'bug' in triage", "to": "dev"}, {"when": "'money' in triage", "to": "sales"}, {"to": "human"}]


@pytest.mark.parametrize(
    ("kind", "who"), [("a bug", "dev"), ("money", "sales"), ("a bug with money", "dev"), ("hello", "human")]
)
async def test_a_route_lets_exactly_one_receive_the_first_whose_condition_is_true(kind: str, who: str) -> None:
    edges = ["triage>dev", "triage>sales", "triage>human", "triage>log", "dev>out", "sales>out", "human>out", "log>out"]
    result = await build(edges, says("triage", kind), output="out", triage={"route": ROUTES}).arun()
    ran = {name for name, status in statuses(result).items() if status == "finished"}
    assert ran == {"triage", who, "log", "out"}


async def test_a_condition_that_has_no_value_fails_its_agent_with_its_place() -> None:
    graph = build([{"edge": "a>b", "when": "a.data.kind == 'x'"}, "a>c", "b>c"], output="c")
    with pytest.raises(
        RunError, match=r"the condition of the edge 'a' -> 'b' \(a.data.kind == 'x'\) can't be evaluated"
    ):
        await graph.arun()


async def test_a_join_of_any_starts_with_the_first_and_the_rest_is_stopped() -> None:
    never = ScriptedAgent("slow", gate=anyio.Event())
    agent, turns = heard("out")
    graph = build(["a>out", "slow>more", "more>out"], never, agent, output="out", out={"join": "any"})
    with anyio.fail_after(60):
        result = await graph.arun()
    assert (result.status, result.text, turns()) == ("finished", "out(a())", [{"a": "a()"}])
    assert [statuses(result)[name] for name in ("slow", "more")] == ["cancelled", "cancelled"]
    assert "nobody waits" in (result.agents["slow"].error or "")


async def test_a_join_of_two_starts_with_two() -> None:
    gate = anyio.Event()
    agent, turns = heard("out")
    slow = ScriptedAgent("c", gate=gate)
    graph = build(["a>out", "b>out", "c>out"], slow, agent, output="out", out={"join": 2})
    with anyio.fail_after(60):
        await graph.arun()
    assert list(turns()[0]) == ["a", "b"]


async def test_a_join_of_more_than_what_is_not_skipped_takes_what_there_is() -> None:
    agent, turns = heard("out")
    edges: Edges = ["a>out", {"edge": "b>out", "when": "false"}, {"edge": "c>out", "when": "false"}]
    await build(edges, agent, output="out", out={"join": 2}).arun()
    assert list(turns()[0]) == ["a"]


async def test_of_several_outputs_the_first_that_ran_is_the_text() -> None:
    edges = ["a>b", "a>c"]
    route = [{"when": "pick == 'b'", "to": "b"}, {"to": "c"}]
    graph = build(edges, output={"good": "b", "bad": "c"}, a={"route": route}, inputs=["pick"])
    result = await graph.arun(pick="c")
    assert (result.text, result.outputs) == ("c(a(c))", {"bad": "c(a(c))"})
    assert (await graph.arun(pick="b")).outputs == {"good": "b(a(b))"}
    both = await build(edges, output=["b", "c"]).arun()
    assert (both.text, list(both.outputs)) == ("b(a())", ["b", "c"])


@pytest.mark.parametrize("channel", ["text", "cache"])
async def test_conditions_outlive_a_swap_of_channels(channel: Any) -> None:
    graph = build([{"edge": "a>b", "when": "false"}, "a>c", "b>c"], output="c").with_channels(channel)
    assert graph.spec.edges[0].when == "false"
    assert graph.with_channels("text").spec.edges[0].when == "false"


CHOICES = st.sampled_from(["always", "true", "false", "route"])


@st.composite
def random_graphs(draw: st.DrawFn) -> tuple[Graph, dict[str, Any]]:
    """A DAG whose edges have conditions, routes and joins, and an output that reads everybody."""
    count = draw(st.integers(2, 8))
    edges: list[dict[str, Any]] = []
    options: dict[str, Any] = {}
    for sender in range(count):
        receivers = draw(st.sets(st.integers(sender + 1, count - 1), max_size=3)) if sender < count - 1 else set()
        kinds = {receiver: draw(CHOICES) for receiver in sorted(receivers)}
        routed = [receiver for receiver, kind in kinds.items() if kind == "route"]
        if routed:
            cases = [{"when": draw(st.sampled_from(["true", "false"])), "to": f"n{to}"} for to in routed[:-1]]
            options[f"n{sender}"] = {"route": [*cases, {"to": f"n{routed[-1]}"}]}
        for receiver, kind in kinds.items():
            when = {"when": kind} if kind in ("true", "false") else {}
            edges.append({"edge": f"n{sender}>n{receiver}", **when})
        edges.append({"edge": f"n{sender}>out"})
    for name in {edge["edge"].split(">")[1] for edge in edges} - {"out"}:
        entries = sum(edge["edge"].endswith(f">{name}") for edge in edges)
        join = draw(st.one_of(st.sampled_from(["all", "any"]), st.integers(1, entries)))
        options.setdefault(name, {})["join"] = join
    return build(edges, output="out", **options), options


@given(random_graphs())
@settings(max_examples=60, deadline=None)
def test_every_agent_of_a_random_graph_finishes_or_is_skipped(drawn: tuple[Graph, dict[str, Any]]) -> None:
    graph, _ = drawn

    async def run() -> Result:
        with anyio.fail_after(60):
            return await graph.arun()

    result = anyio.run(run)
    states = statuses(result)
    assert result.status == "finished"
    assert set(states.values()) <= {"finished", "skipped"}
    ran = {name for name, status in states.items() if status == "finished"}
    for edge in graph.spec.edges:
        entry = graph.spec.agents[edge.sender]
        certain = edge.when in (None, "true") and edge.receiver not in [case.to for case in entry.route]
        assert not (certain and edge.sender in ran and edge.receiver not in ran)
    for name, entry in graph.spec.agents.items():
        chosen = [case.to for case in entry.route if case.when in (None, "true")][:1]
        assert not (chosen and name in ran) or chosen[0] in ran
        came = [pair for pair in result.edges if pair[1] == name]
        sent = {edge.sender for edge in graph.spec.edges if edge.receiver == name}
        assert result.agents[name].turns == (name in ran)
        assert not (name in ran and sent) or came
        if isinstance(entry.join, int):
            assert (
                len(came) <= entry.join
            )  # a synchronous run: nothing comes between the last that counts and the start
