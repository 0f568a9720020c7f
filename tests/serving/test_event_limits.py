"""The events of runs in memory are bounded; who comes too late for some of them gets what the store has."""

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from live_server import Running, served, wait_until
from server_graphs import Gate, held, scripted_duo

from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.cli import main
from cachegraph.graph.run.events import AgentStarted, TextDelta
from cachegraph.serving.config import ServerLimits
from cachegraph.serving.event_stream import PacedEventStream
from cachegraph.serving.openai.errors import complain, refuse
from cachegraph.serving.runs.board import RunBoard
from cachegraph.serving.runs.live_run import EventsGoneError, LiveRun

FEW = ServerLimits(event_bytes=2_000)
LONG = "a long reply " * 200


def piece(number: int) -> TextDelta:
    return TextDelta(at=0.0, agent="a", turn="a", text=f"{number} ")


async def read(live: LiveRun, first: int) -> list[int]:
    return [number async for number, _ in live.follow(first)]


@pytest.mark.anyio
async def test_a_run_keeps_its_latest_events_and_tells_a_late_reader_that_others_are_gone() -> None:
    live = LiveRun("run", None, 10_000)
    for number in range(1_000):
        live.add(piece(number))
        assert live.event_bytes <= 10_000
        assert live.event_bytes == sum(each.size for each in live.events)
    assert live.dropped + len(live.events) == 1_000
    assert json.loads(live.events[-1].data)["text"] == "999 "
    assert await read(live, live.dropped) == list(range(live.dropped, 1_000))
    for first in (0, live.dropped - 1):
        with pytest.raises(EventsGoneError):
            await read(live, first)


@pytest.mark.anyio
async def test_an_event_that_is_larger_than_all_that_is_kept_is_kept_alone() -> None:
    live = LiveRun("run", None, 1_000)
    live.add(AgentStarted(at=0.0, agent="a", turn="a"))
    live.add(TextDelta(at=0.0, agent="a", turn="a", text="x" * 5_000))
    assert await read(live, 1) == [1]


def test_ended_runs_share_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    with served([scripted_duo()]) as server:
        board: RunBoard = server.process.app.state.server.board
        runs = [finished(server)]
        first = board.live(runs[0])
        assert first is not None
        monkeypatch.setattr("cachegraph.serving.runs.board.KEPT_EVENT_BYTES", 5 * first.event_bytes // 2)
        runs += [finished(server) for _ in range(4)]
        assert [board.live(run) is not None for run in runs] == [False, False, False, True, True]
        assert server.get(f"/runs/{runs[0]}/replay").json()["events"][-1]["type"] == "run_finished"


def finished(server: Running) -> str:
    run = str(server.post("/runs", {"graph": "duo", "inputs": {"question": "why?"}}).json()["id"])
    wait_until(lambda: server.get(f"/runs/{run}").json()["status"] == "finished")
    board: RunBoard = server.process.app.state.server.board
    wait_until(lambda: (live := board.live(run)) is None or not live.at_work)
    return run


def streamed(server: Running, run: str, last: str | None = None) -> list[tuple[str | None, dict[str, Any]]]:
    headers = {"Last-Event-ID": last} if last else {}
    text = server.get(f"/runs/{run}/events", headers=headers).text
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((lines.get("id"), json.loads(lines["data"])))
    return found


def test_an_ended_run_that_was_cut_is_told_from_the_store() -> None:
    with served([scripted_duo(ScriptedAgent("expert", LONG))], limits=FEW) as server:
        run = finished(server)
        ((last, event),) = streamed(server, run)
        assert (event["type"], event["run"]["status"]) == ("run_stored", "finished")
        assert event["run"]["result"]["text"] == f"answerer({LONG})"
        kept = streamed(server, run, last)
        assert kept[-1][1]["type"] == "run_finished"
        replay = server.get(f"/runs/{run}/replay").json()
        kinds = [each["type"] for each in replay["events"]]
        assert (kinds[0], kinds.count("agent_finished"), kinds[-1]) == ("run_started", 2, "run_finished")
        assert replay["last"] == kept[-1][0]


def test_a_late_reader_of_a_run_at_work_replays_what_is_stored_and_follows_on() -> None:
    gate = Gate()
    with served([held(gate, LONG)], limits=FEW) as server:
        run = server.post("/runs", {"graph": "duo", "inputs": {"question": "why?"}}).json()["id"]
        assert gate.entered.acquire(timeout=60)
        ((_, event),) = streamed(server, run)
        assert (event["type"], event["run"]["status"]) == ("run_stored", "running")
        replay = server.get(f"/runs/{run}/replay").json()
        told = [each for each in replay["events"] if each["type"] == "agent_finished"]
        assert [(each["agent"], each["result"]["text"]) for each in told] == [("expert", LONG)]
        gate.open.set()
        rest = [each for _, each in streamed(server, run, replay["last"])]
        assert [each["type"] for each in rest if each["type"] != "text_delta"][-1] in ("run_finished", "run_stored")
        assert not [each for each in rest if each.get("agent") == "expert"]


def test_the_command_line_prints_the_whole_reply_of_a_run_whose_pieces_it_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "duo.yaml"
    scripted_duo(models={"m": {"source": "./m"}}).to_yaml(recipe)
    with served([scripted_duo(ScriptedAgent("expert", LONG))], limits=FEW) as server:
        arguments = ["cachegraph", "run", str(recipe), "--server", server.url, "-i", "question=why?"]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    assert capsys.readouterr().out.splitlines()[-1] == f"answerer({LONG})"


@pytest.mark.anyio
async def test_a_paced_stream_reads_no_further_than_its_client() -> None:
    read = 0

    async def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield b"data: 1\n\n"

    async def stuck(message: Any) -> None:
        if message["type"] == "http.response.body":
            await anyio.sleep_forever()

    async def never() -> Any:
        await anyio.sleep_forever()

    stream = PacedEventStream(endless(), refuse, complain)
    async with anyio.create_task_group() as group:
        group.start_soon(stream, {"type": "http"}, never, stuck)
        await anyio.wait_all_tasks_blocked()
        assert 0 < read < 500
        group.cancel_scope.cancel()
