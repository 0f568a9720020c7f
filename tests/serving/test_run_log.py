"""The log of runs: JSON lines that name no text of a run."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import chat, served, wait_until
from server_graphs import scripted_duo

from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.cli.serve import _tell_address
from cachegraph.serving.auth import Keys, read_keys
from cachegraph.serving.run_log import log_as_json, runs

SECRET = "the launch code"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Call it for the lines that were logged."""
    stream, root = io.StringIO(), logging.getLogger()
    monkeypatch.setattr("sys.stderr", stream)
    before, level = list(root.handlers), runs.level
    log_as_json()
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = before
    runs.setLevel(level)


@pytest.fixture
def keys(tmp_path: Any) -> Keys:
    (tmp_path / "keys").write_text("alice one\n")
    return read_keys(tmp_path / "keys")


def test_every_run_is_a_line_without_its_texts(lines: Any, keys: Keys) -> None:
    header = {"Authorization": "Bearer one"}
    with served([scripted_duo()], keys=keys) as server:
        assert server.post("/v1/chat/completions", chat(SECRET), headers=header).status_code == 200
        body = {"graph": "duo", "inputs": {"question": SECRET}}
        run = server.post("/runs", body, headers=header).json()["id"]
        wait_until(lambda: len(lines()) == 2)
    first, second = lines()
    assert (first["event"], first["level"], first["recipe"], first["status"]) == ("run", "info", "duo", "finished")
    assert (first["run_id"], second["run_id"]) == (None, run)
    assert first["tenant"] == second["tenant"] != "alice"
    assert first["ms"] > 0
    assert first["tokens"].keys() == {"prefilled", "cached", "generated"}
    assert SECRET not in json.dumps(lines())


def test_a_failed_run_names_its_agent_and_its_error_only_if_asked(lines: Any) -> None:
    def graph() -> Any:
        return scripted_duo(ScriptedAgent("expert", fail=ValueError(SECRET)))

    with served([graph()]) as server:
        server.post("/v1/chat/completions", chat("why?"))
    with served([graph()], log_content=True) as server:
        server.post("/v1/chat/completions", chat("why?"))
    found = [line for line in lines() if line["event"] == "run"]
    assert [(line["status"], line["failed"]) for line in found] == [("failed", ["expert"])] * 2
    assert [SECRET in json.dumps(line) for line in found] == [False, True]


def test_warnings_and_tracebacks_are_lines_too(lines: Any) -> None:
    log = logging.getLogger("cachegraph.serving")
    log.warning("low on %s", "disk")
    try:
        raise ValueError("odd\nthing")
    except ValueError:
        log.exception("it failed")
    log.info("not shown")
    warning, error = lines()
    assert (warning["level"], warning["message"], warning["logger"]) == ("warning", "low on disk", "cachegraph.serving")
    assert (error["level"], "ValueError: odd" in error["traceback"]) == ("error", True)


def test_the_start_is_a_line_as_well(lines: Any) -> None:
    _tell_address(["duo", "pair"], "http://127.0.0.1:8765", True)
    (line,) = lines()
    assert (line["event"], line["recipes"], line["url"]) == ("start", ["duo", "pair"], "http://127.0.0.1:8765")
