"""Spans and metrics of runs, as the SDK exports them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode
from telemetry import Seen

from cachegraph import ConfigError, Graph, RunError
from cachegraph.agents.base import ToolCall, Turn
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.tracing import names

pytestmark = pytest.mark.anyio


def fan(*agents: ScriptedAgent, **options: Any) -> Graph:
    """`start`, then `left` and `right` at once, then `end`."""
    graph = Graph(name="fan", create=scripted(*agents), **options).add_input("q")
    graph.add_agent("start", model="m", prompt="{{ q }}")
    for name in ("left", "right"):
        graph.add_agent(name, model="m", prompt="{{ start }}").add_edge("start", name, channel="auto")
    graph.add_agent("end", model="m", prompt="{{ left }}{{ right }}").add_edge("left", "end").add_edge("right", "end")
    graph.output = "end"
    return graph


async def test_a_run_is_a_workflow_of_agents_that_chat(seen: Seen) -> None:
    await fan().arun(q="x")
    assert seen.parent("invoke_workflow fan") is None
    for name in ("start", "left", "right", "end"):
        assert seen.parent(f"invoke_agent {name}") == "invoke_workflow fan"
    chats = [span for span in seen.finished if span.name == "chat m"]
    agents = {seen.spans[f"invoke_agent {name}"].id for name in ("start", "left", "right", "end")}
    assert {chat.parent_id for chat in chats} == agents
    agent = seen.spans["invoke_agent left"]
    assert agent.attributes["gen_ai.agent.name"] == agent.attributes["cachegraph.turn"] == "left"
    assert seen.spans["invoke_workflow fan"].attributes["cachegraph.status"] == "finished"
    assert seen.spans["invoke_workflow fan"].start_time <= agent.start_time <= agent.end_time


async def test_the_run_hangs_below_the_callers_span(seen: Seen) -> None:
    with trace.get_tracer("test").start_as_current_span("request"):
        await fan().arun(q="x")
        async with fan().stream(q="x") as stream:
            assert [event async for event in stream]
        assert getattr(trace.get_current_span(), "name", None) == "request"
    runs = [span for span in seen.finished if span.name == "invoke_workflow fan"]
    assert [span.parent_id for span in runs] == [seen.spans["request"].id] * 2


async def test_what_an_agent_does_hangs_below_its_own_chat_however_many_are_at_work(seen: Seen) -> None:
    class Working(ScriptedAgent):
        async def turn(self, turn: Turn):  # type: ignore[no-untyped-def]
            for number in range(3):
                with trace.get_tracer("test").start_as_current_span(f"{self.name} works {number}"):
                    await anyio.lowlevel.checkpoint()
            return await super().turn(turn)

    await fan(Working("left"), Working("right")).arun(q="x")
    for name in ("left", "right"):
        agent = seen.spans[f"invoke_agent {name}"].id
        chats = [span for span in seen.finished if span.name == "chat m"]
        own = next(chat.id for chat in chats if chat.parent_id == agent)
        assert {seen.spans[f"{name} works {number}"].parent_id for number in range(3)} == {own}


async def test_many_runs_at_once_keep_their_own_spans(seen: Seen) -> None:
    await fan().amap([{"q": str(number)} for number in range(20)], max_concurrent=10)
    spans = seen.finished
    runs = {span.id: span.trace_id for span in spans if span.name == "invoke_workflow fan"}
    agents = [span for span in spans if span.name.startswith("invoke_agent")]
    assert (len(runs), len(agents)) == (20, 80)
    assert all(span.parent_id is not None and runs[span.parent_id] == span.trace_id for span in agents)


async def test_an_edge_is_a_span_of_its_receiver_that_links_to_its_sender(seen: Seen) -> None:
    await fan().arun(q="x")
    edges = [span for span in seen.finished if span.name == "cachegraph.channel start"]
    left = next(span for span in edges if span.attributes[names.RECEIVER] == "left")
    assert left.parent_id == seen.spans["invoke_agent left"].id
    assert [link.context for link in left.links] == [seen.spans["invoke_agent start"].context]
    assert (left.attributes[names.ASKED], left.attributes[names.USED]) == ("auto", "text")
    assert "follows a script" in left.attributes[names.FALLBACK_REASON]
    (fallbacks,) = seen.points(names.CHANNEL_FALLBACKS)
    assert (fallbacks.value, dict(fallbacks.attributes)) == (2, {names.ASKED: "auto", names.USED: "text"})


async def test_a_failed_agent_and_its_run_are_errors_and_those_it_cut_off_are_cancelled(seen: Seen) -> None:
    slow = ScriptedAgent("right", gate=anyio.Event())
    with pytest.raises(RunError):
        await fan(ScriptedAgent("left", fail=ValueError("no")), slow).arun(q="x")
    left, right = seen.spans["invoke_agent left"], seen.spans["invoke_agent right"]
    assert (left.status.status_code, left.status.description) == (StatusCode.ERROR, "ValueError: no")
    assert (left.attributes["error.type"], right.attributes["error.type"]) == ("ValueError", "cancelled")
    run = seen.spans["invoke_workflow fan"]
    assert (run.status.status_code, run.attributes["cachegraph.status"]) == (StatusCode.ERROR, "failed")
    assert "invoke_agent end" not in seen.spans
    kinds = [p.attributes.get("error.type") for p in seen.points("gen_ai.client.operation.duration")]
    assert sorted(kinds, key=str) == [None, "ValueError", "cancelled"]


async def test_a_cancelled_run_ends_all_its_spans(seen: Seen) -> None:
    left = ScriptedAgent("left", gate=anyio.Event(), entered=anyio.Event())
    async with anyio.create_task_group() as group:
        group.start_soon(fan(left).arun, {"q": "x"})
        assert left.entered is not None
        await left.entered.wait()
        group.cancel_scope.cancel()
    assert seen.spans["invoke_agent left"].attributes["error.type"] == "cancelled"
    assert seen.spans["invoke_workflow fan"].attributes["cachegraph.status"] == "cancelled"


async def test_a_run_whose_models_can_not_be_loaded_is_one_failed_span(seen: Seen) -> None:
    with pytest.raises(ConfigError):
        await fan(ScriptedAgent("end", fail_open=ConfigError("no key"))).arun(q="x")
    assert {name: span.status.description for name, span in seen.spans.items()} == {"invoke_workflow fan": "no key"}


async def test_what_is_said_is_captured_only_if_the_variable_says_so(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(names.CAPTURE, raising=False)
    await fan(ScriptedAgent("end", "the secret")).arun(q="a question")
    assert "secret" not in str([span.to_json() for span in seen.exporter.get_finished_spans()])
    assert "a question" not in str([span.to_json() for span in seen.exporter.get_finished_spans()])
    seen.exporter.clear()
    monkeypatch.setenv(names.CAPTURE, "true")
    await fan(ScriptedAgent("end", "the secret")).arun(q="a question")
    run = seen.spans["invoke_workflow fan"]
    assert json.loads(run.attributes[names.OUTPUT_MESSAGES])[0]["parts"] == [{"type": "text", "content": "the secret"}]
    assert "a question" in run.attributes[names.INPUT_MESSAGES]


class Calling(ScriptedAgent):
    """Has called a tool that could do it and one that could not."""

    async def turn(self, turn: Turn):  # type: ignore[no-untyped-def]
        assert turn.on_tool is not None
        turn.on_tool(ToolCall("calc.add", {"a": 1}, "2", seconds=0.5))
        turn.on_tool(ToolCall("calc.sub", {}, "no", error=True))
        return await super().turn(turn)


@pytest.mark.parametrize("captured", [False, True])
async def test_a_tools_call_is_a_span_of_the_agent_that_made_it(
    seen: Seen, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if captured:
        monkeypatch.setenv(names.CAPTURE, "true")
    await fan(Calling("left")).arun(q="x")
    add, sub = seen.spans["execute_tool calc.add"], seen.spans["execute_tool calc.sub"]
    assert seen.parent("execute_tool calc.add") == seen.parent("execute_tool calc.sub") == "invoke_agent left"
    assert add.end_time - add.start_time == pytest.approx(5e8, abs=2)
    assert (add.attributes["gen_ai.operation.name"], add.attributes["gen_ai.tool.name"]) == ("execute_tool", "calc.add")
    assert (add.status.status_code, sub.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    assert sub.attributes["error.type"] == "tool_error"
    said = ('{"a": 1}', "2") if captured else (None, None)
    assert (add.attributes.get(names.TOOL_ARGUMENTS), add.attributes.get(names.TOOL_RESULT)) == said
    assert sorted(point.sum for point in seen.points(names.TOOL_DURATION)) == [0.0, 0.5]


async def test_skipped_and_cancelled_agents_are_events_of_the_run(seen: Seen) -> None:
    graph = fan(ScriptedAgent("left", fail=ValueError("no")), on_error="continue")
    graph.add_agent("never", model="m", prompt="").add_edge("start", "never", when="false").add_edge("never", "end")
    with pytest.raises(RunError):
        await graph.arun(q="x")
    events = seen.spans["invoke_workflow fan"].events
    told = [(event.name, (event.attributes or {})["gen_ai.agent.name"]) for event in events]
    assert told == [(names.SKIPPED, "never"), (names.CANCELLED, "end")]


async def test_metrics_go_without_traces_and_traces_without_metrics(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", None)
        await fan().arun(q="x")
    assert not seen.spans
    assert sum(point.count for point in seen.points("gen_ai.invoke_agent.duration")) == 5
    from opentelemetry.metrics import _internal as metrics

    monkeypatch.setattr(metrics, "_METER_PROVIDER", None)
    await fan().arun(q="x")
    assert "invoke_workflow fan" in seen.spans


async def test_without_a_provider_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.metrics import _internal as metrics

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(metrics, "_METER_PROVIDER", None)
    assert fan()._new_run({"q": "x"}, None)._context.listener is None


def test_a_run_imports_no_opentelemetry() -> None:
    code = (
        "import sys\nfrom cachegraph import Graph\nfrom cachegraph.agents.scripted import scripted\n"
        "graph = Graph(agents={'a': {'model': 'm', 'prompt': ''}}, output='a', create=scripted())\n"
        "graph.run()\nprint('opentelemetry' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root / "src", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


async def test_a_chat_says_why_its_reply_ended(seen: Seen) -> None:
    await fan(ScriptedAgent("left", finish_reason="length"), ScriptedAgent("right", finish_reason=None)).arun(q="x")
    chats = {span.parent_id: span for span in seen.finished if span.name == "chat m"}
    by_agent = {name: chats[seen.spans[f"invoke_agent {name}"].id].attributes for name in ("left", "right")}
    assert by_agent["left"]["gen_ai.response.finish_reasons"] == ("length",)
    assert "gen_ai.response.finish_reasons" not in by_agent["right"]
