"""Recorded turns with any damage: replies of models, endpoints and tools that a run store gives back."""

import json
from collections import Counter
from random import Random
from types import SimpleNamespace
from typing import Any

import anyio
from damage import damage_json
from fuzz_counts import cases, report

from cachegraph.agents.base import Reply, Turn
from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.errors import RunError
from cachegraph.graph.run.executor import record_reply
from cachegraph.graph.run.result import AgentResult, Result
from cachegraph.graph.run.turn_log import RecordedTurn, take_turn
from cachegraph.graph.store.records import Outcome, Setting, StoredRun, read_turn
from cachegraph.serving.runs.replay import rebuilt_events

RECORDED: dict[str, Any] = {
    "text": "It rains.",
    "data": {"rain": True, "mm": [1, 2.5]},
    "ids": [1, 2, 3],
    "agent": {
        "status": "finished",
        "model": "gpt-x",
        "started": 0.5,
        "turn": "b",
        "timing": {"queued": 0.0, "prefill": 0.1, "first_token": None, "total": 1.0},
        "tokens": {"prefilled": 20, "generated": 3, "reused": 0, "kv_bytes": 0},
        "finish_reason": "tool_calls",
        "tool_calls": [
            {"tool": "t.go", "arguments": {"x": [1]}, "result": "ok", "error": False, "seconds": 0.2, "round": 1}
        ],
        "memory": {"turns": 2, "reused": 0, "refused": None},
    },
    "edges": {
        "a": {
            "asked": "cache",
            "channel_used": "cache",
            "fallback_reason": None,
            "bytes": 10,
            "positions_fused": 3,
            "positions_grafted": 0,
            "seconds": {"transfer": 0.1},
            "residuals": {"0": [0.5, None]},
            "fuser": "f",
            "fuser_reason": "the edge",
        }
    },
    "remembered": [["user", "hi"]],
}


class Log:
    run = "r"

    def __init__(self, recorded: RecordedTurn):
        self._recorded = recorded

    def recall(self, turn: str) -> RecordedTurn:
        return self._recorded


def use(body: str) -> None:
    """All that reads a recorded turn: listing, resuming, the result of the resumed run, the page that replays it."""
    stored = read_turn(SimpleNamespace(turn="b", recorded=1.0, body=body))
    run = StoredRun("r", "g", "finished", 0.0, 1.0, "", Setting({}, "."), Outcome(), [stored])
    json.dumps(run.to_dict())
    events = rebuilt_events(run)
    assert [event["type"] for event in (events[0], events[-1])] == ["run_started", "run_finished"]
    json.dumps(events)

    async def resume() -> Reply:
        return await take_turn(Log(stored.recorded), "b", ScriptedAgent("b"), Turn({}))  # type: ignore[arg-type]

    reply = anyio.run(resume)
    result = AgentResult(started=0.0)
    record_reply(result, reply, 1.0)
    edges = {(sender, "b"): report for sender, report in reply.edges.items()}
    text = Result(graph="g", status="finished", output="b", agents={"b": result}, edges=edges).to_json()
    assert Result.from_json(text).agents["b"].turn == ""


def test_damaged_recordings_are_refused_in_a_sentence_or_used() -> None:
    use(json.dumps(RECORDED))
    ends = Counter[str]()
    for seed in range(cases(1_000)):
        body = json.dumps(damage_json(Random(seed), RECORDED))
        try:
            use(body)
        except (ValueError, TypeError):  # of `read_turn`: the store refuses the run by its id
            ends["refused when read"] += 1
            continue
        except RunError as error:
            said = str(error)
            assert "what run 'r' recorded of turn 'b' is damaged" in said  # noqa: PT017, many ends are right
            ends["refused when resumed"] += 1
        else:
            ends["used"] += 1
    report("recorded turns", ends)
    assert min(ends["used"], ends["refused when read"]) > 50
