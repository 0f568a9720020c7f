"""/runs: runs that outlive their request."""

import json
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from live_server import Running, send, served, wait_until
from server_graphs import Gate, gated, scripted_duo, tiny_solo
from sqlalchemy import update

from cachegraph.agents.http_client import ssl_context
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.graph import Graph
from cachegraph.graph.store import Store
from cachegraph.graph.store.records import Outcome
from cachegraph.graph.store.schema import runs as table
from cachegraph.serving.auth import read_keys
from cachegraph.serving.config import ServerLimits
from cachegraph.serving.runs.live_run import LiveRun


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))


def asking() -> Graph:
    """A graph that asks a person, and then says what it heard."""
    graph = Graph(name="asking", create=scripted(ScriptedAgent("last")))
    graph.add_input("question")
    graph.add_agent("first", model="m", prompt="{{ question }}")
    graph.add_agent("person", pause="{{ first }}?")
    graph.add_agent("last", model="m", prompt="{{ person }}")
    graph.add_edge("first", "person")
    graph.add_edge("person", "last")
    graph.output = "last"
    return graph


def begin(server: Running, graph: str = "duo", **more: Any) -> dict[str, Any]:
    answer = server.post("/runs", {"graph": graph, "inputs": {"question": "why?"}, **more})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/runs/{answer.json()['id']}"
    found: dict[str, Any] = answer.json()
    return found


def test_no_run_waited_for_the_models_that_the_server_loads() -> None:
    expert = ScriptedAgent("expert")
    vars(expert)["loading"] = {"m": {"read": 2.5}}
    with served([scripted_duo(expert)]) as server:
        assert ended(server, begin(server)["id"])["result"]["loading"] == {"seconds": 0.0, "models": {}}


def show(server: Running, run: str) -> dict[str, Any]:
    found: dict[str, Any] = server.get(f"/runs/{run}").json()
    return found


def ended(server: Running, run: str) -> dict[str, Any]:
    """The run, once nothing is at work on it, nor will be: a server that starts resumes what was interrupted."""
    shown: dict[str, Any] = {}

    def over() -> bool:
        shown.update(show(server, run))
        return shown["status"] not in ("running", "interrupted")

    wait_until(over)
    return shown


def events(server: Running, run: str, last: str | None = None) -> list[tuple[str, str, dict[str, Any]]]:
    """Id, name and body of each."""
    headers = {"Last-Event-ID": last} if last is not None else {}
    found = []
    for block in server.get(f"/runs/{run}/events", headers=headers).text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return found


def test_a_run_is_begun_and_found_again() -> None:
    with served([scripted_duo()]) as server:
        run = begin(server)["id"]
        found = ended(server, run)
        assert (found["status"], found["text"]) == ("finished", "answerer(expert(why?))")
        assert found["turns"] == {"expert": "expert(why?)", "answerer": "answerer(expert(why?))"}
        assert found["inputs"] == {"question": "why?"}
        assert found["result"]["agents"]["expert"]["status"] == "finished"
        (listed,) = server.get("/runs").json()["runs"]
        assert (listed["id"], listed["status"]) == (run, "finished")
        assert server.get("/runs?status=paused").json()["runs"] == []
        assert server.get("/runs?graph=duo&limit=1").json()["runs"] == [listed]


def test_events_are_sent_as_they_come_and_go_on_from_the_last_one_seen() -> None:
    gate = Gate()
    with served([gated(gate)]) as server:
        run = begin(server)["id"]
        with httpx2.stream("GET", f"{server.url}/runs/{run}/events", timeout=60, verify=ssl_context()) as answer:
            lines = answer.iter_lines()
            assert next(line for line in lines if line.startswith("event:")) == "event: run_started"
        gate.open.set()
        ended(server, run)
        whole = events(server, run)
        assert [name for _, name, _ in whole][0] == "run_started"
        assert [name for _, name, _ in whole][-1] == "run_finished"
        assert whole[-1][2]["result"]["text"] == "at last"
        assert events(server, run, whole[1][0]) == whole[2:]
        assert events(server, run, "of-another-server-7") == whole


def test_a_run_that_waits_for_a_person_goes_on_with_the_answer() -> None:
    with served([asking()]) as server:
        run = begin(server, "asking")["id"]
        paused = ended(server, run)
        assert (paused["status"], paused["questions"]) == ("paused", {"person": "first(why?)?"})
        assert server.post(f"/runs/{run}/answer", {"answer": "x", "turn": "other"}).status_code == 400
        assert server.post(f"/runs/{run}/answer", {"answer": "because"}).status_code == 200
        wait_until(lambda: show(server, run)["status"] == "finished")
        assert show(server, run)["text"] == "last(because)"
        assert server.post(f"/runs/{run}/answer", {"answer": "again"}).status_code == 400
        names = [name for _, name, _ in events(server, run)]
        assert names.count("run_finished") == 2  # of both parts


def test_an_answer_that_comes_while_the_task_of_a_paused_run_ends_begins_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_end, order = threading.Event(), list[str]()
    begin_attempt = LiveRun.begin

    def note_begin(live: LiveRun, *parts: Any) -> None:
        order.append("begins")
        begin_attempt(live, *parts)

    async def end_late(_: Graph | None) -> None:
        while not may_end.is_set():  # noqa: ASYNC110  (the test's thread sets it)
            await anyio.sleep(0.005)
        order.append("ends")

    monkeypatch.setattr(LiveRun, "begin", note_begin)
    monkeypatch.setattr("cachegraph.serving.runs.board._close", end_late)
    with served([asking()]) as server:
        run = begin(server, "asking")["id"]
        ended(server, run)
        answer = threading.Thread(target=lambda: server.post(f"/runs/{run}/answer", {"answer": "because"}))
        answer.start()
        wait_until(lambda: show(server, run)["status"] == "running")
        may_end.set()
        answer.join(60)
        assert ended(server, run)["status"] == "finished"
        assert [name for _, name, _ in events(server, run)][-1] == "run_finished"
    assert order == ["begins", "ends"] * 2


def test_a_run_is_cancelled() -> None:
    gate = Gate()
    with served([gated(gate)]) as server:
        run = begin(server)["id"]
        gate.entered.acquire(timeout=60)
        assert server.post(f"/runs/{run}/cancel").json()["status"] == "cancelled"
        assert gate.cancelled == 1
        assert server.post(f"/runs/{run}/cancel").status_code == 409
        assert server.queue.reserved == 0


def test_a_run_that_waits_in_line_is_in_the_store_and_can_be_cancelled() -> None:
    gate = Gate()
    with served([gated(gate)], limits=ServerLimits(running=1, waiting=1)) as server:
        first, second = begin(server)["id"], begin(server)["id"]
        assert show(server, second)["status"] == "running"
        assert server.post("/runs", {"graph": "duo", "inputs": {"question": "x"}}).status_code == 429
        assert server.post(f"/runs/{second}/cancel").json()["status"] == "cancelled"
        gate.open.set()
        assert ended(server, first)["status"] == "finished"


def test_a_run_that_fails_says_why_without_paths(tmp_path: Path) -> None:
    failing = ScriptedAgent("answerer", fail=ValueError(f"can't read '{tmp_path}/x'"))
    with served([scripted_duo(failing)]) as server:
        run = begin(server)["id"]
        found = ended(server, run)
        assert found["status"] == "failed"
        assert "can't read 'x'" in found["error"]
        assert str(tmp_path) not in json.dumps(found) + json.dumps(events(server, run))


def test_a_server_that_stops_parks_its_runs_and_the_next_one_goes_on_with_them() -> None:
    gate = Gate()
    expert = ScriptedAgent("expert")
    answerer = ScriptedAgent("answerer", "never")
    graph = scripted_duo(expert, answerer)

    async def held(turn: Any) -> Any:
        await gate()
        raise AssertionError

    answerer.turn = held  # type: ignore[method-assign]
    with served([graph]) as server:
        run = begin(server)["id"]
        gate.entered.acquire(timeout=60)
    assert gate.cancelled == 1
    with served([scripted_duo(ScriptedAgent("expert", "never"))]) as server:
        wait_until(lambda: show(server, run)["status"] == "finished")
        assert show(server, run)["text"] == "answerer(expert(why?))"


def test_runs_of_one_tenant_are_none_of_another(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice one\nbob two\n")
    gate = Gate()
    with served([gated(gate)], keys=read_keys(tmp_path / "keys")) as server:
        alice, bob = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        body = {"graph": "duo", "inputs": {"question": "why?"}}
        run = server.post("/runs", body, headers=alice).json()["id"]
        assert server.get("/runs", headers=bob).json()["runs"] == []
        assert server.get(f"/runs/{run}", headers=bob).status_code == 404
        assert server.get(f"/runs/{run}/events", headers=bob).status_code == 404
        assert server.post(f"/runs/{run}/cancel", headers=bob).status_code == 404
        assert server.post(f"/runs/{run}/answer", {"answer": "x"}, headers=bob).status_code == 404
        assert [each["id"] for each in server.get("/runs", headers=alice).json()["runs"]] == [run]
        assert server.get(f"/runs/{run[:-1]}", headers=alice).status_code == 404
        gate.open.set()


def test_a_run_takes_settings_and_a_channel() -> None:
    with served([tiny_solo()]) as server:
        run = begin(server, "solo@text", settings={"max_new_tokens": 3})["id"]
        result = ended(server, run)["result"]
        assert result["agents"]["a"]["tokens"]["generated"] == 3


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/runs", {"graph": "other"}, 404),
        ("POST", "/runs", {"graph": "duo"}, 400),
        ("POST", "/runs", {"graph": "duo", "inputs": {"qestion": 1}}, 400),
        ("POST", "/runs", {"graph": "duo", "inputs": {"question": "x"}, "settings": {"max_new_tokens": "x"}}, 400),
        ("POST", "/runs", {"graph": "duo", "inputs": {"question": "x"}, "settings": {"max_new_tokens": 1e9}}, 400),
        ("POST", "/runs", {"graph": "duo", "inputs": {"question": "x"}, "more": 1}, 400),
        ("GET", "/runs/server-000000000000", None, 404),
        ("GET", "/runs/" + "x" * 500, None, 404),
        ("GET", "/runs?limit=x", None, 400),
        ("GET", "/runs?limit=-1", None, 400),
        ("GET", "/runs?limit=1000", None, 400),
        ("GET", "/runs?status=odd", None, 400),
        ("DELETE", "/runs", None, 405),
    ],
)
def test_what_is_wrong_with_a_request_is_said(method: str, path: str, body: Any, status: int) -> None:
    with served([scripted_duo()]) as server:
        answer = send(method, f"{server.url}{path}", json=body)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]


def test_a_killed_server_loses_no_run_that_it_has_acknowledged(tmp_path: Path) -> None:
    import os
    import signal
    import subprocess

    (tmp_path / "steps.py").write_text(
        "import anyio\nfrom pathlib import Path\nasync def answerer(question: str) -> str:\n"
        "    here = Path(__file__).parent\n    while not (here / 'go').exists():\n        await anyio.sleep(0.02)\n"
        "    return 'done'\n"
    )
    recipe = tmp_path / "duo.yaml"
    recipe.write_text(
        "version: 1\nname: duo\ninputs: {question: {}}\nagents: {answerer: {function: 'steps.py:answerer'}}\n"
        "output: answerer\n"
    )
    code = "import sys\nfrom cachegraph.cli import main\nmain()"

    def start() -> "tuple[subprocess.Popen[str], str]":
        command = [
            sys.executable,
            "-c",
            code,
            "serve",
            str(recipe),
            "--allow-code",
            "--port",
            "0",
            "--concurrency",
            "2",
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        assert process.stderr is not None
        url = process.stderr.readline().rpartition(" ")[2].strip()
        wait_until(lambda: send("GET", f"{url}/ready").status_code == 200)
        return process, url

    process, url = start()
    body = {"graph": "duo", "inputs": {"question": "x"}}
    runs = [send("POST", f"{url}/runs", json=body).json()["id"] for _ in range(5)]  # two at work, three wait
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (tmp_path / "go").touch()
    process, url = start()

    def finished(run: str) -> bool:
        return bool(send("GET", f"{url}/runs/{run}").json()["status"] == "finished")

    try:
        for run in runs:
            wait_until(partial(finished, run))
    finally:
        process.kill()
        process.communicate()


def test_single_edges_of_a_run_go_over_other_channels_and_a_restart_finds_that_recipe() -> None:
    gate = Gate()

    def graph() -> Graph:
        made = Graph(name="duo", create=scripted())
        made.add_input("question")
        made.add_agent("a", model="m", prompt="{{ question }}")
        made.add_agent("b", model="m", prompt="{{ a }}").add_edge("a", "b", "auto")

        @made.function
        async def c(b: str) -> str:
            return await gate() + b

        made.add_edge("b", "c")
        made.output = "c"
        return made

    with served([graph()]) as server:
        run = begin(server, channels={"a:b": "text"})["id"]
        wait_until(gate.entered.acquire)
        edges = server.get(f"/runs/{run}/replay").json()["graph"]["edges"]
        assert [edge["channel"] for edge in edges] == ["text", "text"]
    gate.open.set()
    with served([graph()]) as server:
        assert ended(server, run)["status"] == "finished"
        for channels in ({"a": "text"}, {"a:c": "text"}, {"a:b": "voice"}):
            answer = server.post("/runs", {"graph": "duo", "inputs": {"question": "?"}, "channels": channels})
            assert answer.status_code == 400


def test_a_run_of_an_earlier_server_is_rebuilt_as_events(tmp_path: Path) -> None:
    failing = scripted_duo(ScriptedAgent("answerer", fail=ValueError("no")))
    with served([scripted_duo()]) as server:
        run = begin(server)["id"]
        ended(server, run)
        live = server.get(f"/runs/{run}/replay").json()
    with served([failing]) as server:
        rebuilt = server.get(f"/runs/{run}/replay").json()
        assert rebuilt["graph"] == live["graph"]
        kinds = [event["type"] for event in live["events"] if event["type"] != "text_delta"]
        assert [event["type"] for event in rebuilt["events"]] == kinds
        by_kind = {event["type"]: event for event in rebuilt["events"]}
        for event in live["events"]:
            assert event["type"] == "text_delta" or event.keys() <= by_kind[event["type"]].keys()
        assert by_kind["edge_travelled"]["report"]["channel_used"] == "text"
        broken = begin(server)["id"]
        ended(server, broken)
    with served([failing]) as server:
        *_, failed, finished = server.get(f"/runs/{broken}/replay").json()["events"]
        assert (failed["type"], failed["agent"], "no" in failed["error"]) == ("agent_failed", "answerer", True)
        assert finished["result"]["status"] == "failed"


def test_prompts_are_shown_while_they_are_in_memory_and_to_no_tenant(tmp_path: Path) -> None:
    with served([tiny_solo()]) as server:
        run = begin(server, "solo")["id"]
        ended(server, run)
        prompt = server.get(f"/runs/{run}/prompt?turn=a").json()
        assert [(part["kind"], part["source"]) for part in prompt["parts"] if part["kind"] == "words"] == [
            ("words", "question")
        ]
        kinds = [event["type"] for event in server.get(f"/runs/{run}/replay").json()["events"]]
        assert kinds[:3] == ["run_started", "agent_started", "agent_prefilled"]
        assert server.get(f"/runs/{run}/prompt?turn=b").status_code == 404
    (tmp_path / "keys").write_text("alice secret\n")
    with served([tiny_solo()], keys=read_keys(tmp_path / "keys")) as server:
        key = {"Authorization": "Bearer secret"}
        run = server.post("/runs", {"graph": "solo", "inputs": {"question": "?"}}, headers=key).json()["id"]
        assert server.get(f"/runs/{run}/prompt?turn=a", headers=key).status_code == 403


def test_a_run_that_ends_the_process_again_and_again_is_not_resumed_for_ever() -> None:
    gate = Gate()
    with served([gated(gate)]) as server:
        runs = [begin(server)["id"] for _ in range(3)]
        for _ in runs:
            assert gate.entered.acquire(timeout=60)
    assert gate.cancelled == 3
    assert [Store().get(run).outcome.starts for run in runs] == [0, 0, 0]  # parked: nothing crashed
    for run, starts in zip(runs, (3, 2, 2), strict=True):
        _crashed(run, starts)
    gate = Gate()
    with served([gated(gate)]) as server:
        wait_until(lambda: show(server, runs[0])["status"] == "failed")
        assert "the server's process ended 3 times while this run was at work" in show(server, runs[0])["error"]
        assert gate.entered.acquire(timeout=60)
        assert not gate.entered.acquire(timeout=0.2)  # the other suspect waits until the first has ended
        gate.open.set()
        for run in runs[1:]:
            wait_until(partial(lambda run: show(server, run)["status"] == "finished", run))


def _crashed(run: str, starts: int) -> None:
    """Leave a run as a process does that died while it was at work."""
    store = Store()
    with store._database.writing() as connection:
        values = {"status": "running", "owner": None, "outcome": Outcome(starts=starts).to_json()}
        connection.execute(update(table).where(table.c.id == run).values(values))
    store.close()
