"""A cluster whose head dies ends a run with a sentence, and the run is resumed on another one."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from clusters import chain_recipe
from live_server import send, wait_until
from typer.testing import CliRunner

from cachegraph import Graph
from cachegraph.cli import app
from cachegraph.engine.spec import ModelSpec
from cachegraph.graph.store import Store

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster

# Kills the head and all replicas when the second agent's reply has begun, as if their machine had lost its power.
DRIVER = """
import os, signal, sys
from pathlib import Path
import ray
import cachegraph.cluster.connect
from cachegraph.cli.process import run_process
from cachegraph.cluster.spoken import SpokenText

connect, hear, clusters = cachegraph.cluster.connect.connect, SpokenText.hear, []

def connected(address):
    clusters.append(connect(address, cpus=1, object_store_bytes=100 << 20))
    return clusters[0]

def heard(spoken, events):
    hear(spoken, events)
    if spoken._agent == "second" and clusters[0].sets:
        handles = [handle for replicas in clusters[0].sets.values() for handle in replicas.handles]
        heads = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit() and is_head(each)]
        for process in [*heads, *(handle.facts.process for handle in handles if handle.facts)]:
            os.kill(process, signal.SIGKILL)
        SpokenText.hear = hear

def is_head(folder):
    try:
        started = f"\\nPPid:\\t{os.getpid()}\\n" in (folder / "status").read_text()
        return started and b"gcs_server" in (folder / "cmdline").read_bytes()
    except OSError:
        return False

cachegraph.cluster.connect.connect, SpokenText.hear = connected, heard
run_process()
"""


def test_a_run_whose_head_dies_ends_with_a_sentence_and_is_resumed(
    models: dict[str, ModelSpec], cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, kept = tmp_path / "chain.yaml", tmp_path / "runs.db"
    recipe.write_text(chain_recipe(models["small"].source, first=12, second=40))
    with Graph.from_yaml(recipe, allow_paths=True) as graph:
        expected = graph.run()
    environment = os.environ | {"RAY_gcs_rpc_server_reconnect_timeout_s": "20", "CACHEGRAPH_STORE": str(kept)}
    options = ["run", str(recipe), "--allow-paths", "--cluster", "local", "--quiet"]
    command = [sys.executable, "-c", DRIVER, *options]
    driver = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert driver.returncode == 1, driver.stderr
    said = driver.stderr.strip().splitlines()[-1]
    assert "agent 'second' failed: the connection to the cluster is lost: nothing has answered at " in said
    assert "continue a stored run with `cachegraph runs resume ID --cluster ADDRESS`" in said
    (stored,) = Store(kept).list(5)
    assert (stored.status, stored.turns) == ("failed", 1)

    monkeypatch.setenv("CACHEGRAPH_STORE", str(kept))
    resumed = CliRunner().invoke(app, ["runs", "resume", stored.id, "--quiet", "--cluster", "local"])
    assert resumed.exception is None
    assert resumed.stdout == f"{expected.text}\n"


def test_a_head_that_another_one_has_replaced_is_lost_and_a_silent_one_may_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cachegraph.cluster import head as module

    answers: dict[str, Any] = {"silence": "nothing answers at head:6379 (timed out)", "replaced": False}
    monkeypatch.setattr(module, "silence_of", lambda *_: answers["silence"])
    monkeypatch.setattr(module, "_is_replaced", lambda: answers["replaced"])
    head = module.Head("head:6379", patience=3600.0)
    with pytest.raises(module.HeadSilent, match="the head of the cluster at head:6379 does not answer"):
        head.require()
    answers["silence"] = None
    head.require()
    assert head.why_lost is None
    answers["replaced"] = True
    with pytest.raises(module.ClusterLost, match="is lost: another head has started at head:6379; when the cluster"):
        head.require()


# `cachegraph serve`, with little of this machine for its cluster.
SERVER = """
import cachegraph.cluster.connect
from cachegraph.cli.process import run_process

connect = cachegraph.cluster.connect.connect
cachegraph.cluster.connect.connect = lambda address: connect(address, cpus=1, object_store_bytes=100 << 20)
run_process()
"""


def head_of(driver: int) -> int:
    """The process of the head that this driver has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            is_child = f"\nPPid:\t{driver}\n" in (folder / "status").read_text()
            if is_child and b"gcs_server" in (folder / "cmdline").read_bytes():
                return int(folder.name)
    raise AssertionError("the driver has no head")


def test_a_server_whose_head_dies_answers_with_a_sentence_until_it_is_stopped(
    models: dict[str, ModelSpec], tmp_path: Path
) -> None:
    recipe = tmp_path / "chain.yaml"
    recipe.write_text(chain_recipe(models["small"].source, first=4, second=4))
    environment = os.environ | {"RAY_gcs_rpc_server_reconnect_timeout_s": "12"}
    options = ["serve", str(recipe), "--allow-paths", "--cluster", "local", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, *options], env=environment, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            url = next(line for line in server.stderr if "serving chain at" in line).split()[-1]
            wait_until(lambda: send("GET", f"{url}/ready").status_code == 200)
            ask = {"model": "chain", "messages": [{"role": "user", "content": ""}]}
            assert send("POST", f"{url}/v1/chat/completions", json=ask).status_code == 200
            os.kill(head_of(server.pid), signal.SIGKILL)
            wait_until(lambda: send("GET", f"{url}/health").status_code == 503)
            answer = send("POST", f"{url}/v1/chat/completions", json=ask)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "cluster_lost")
            said = answer.json()["error"]["message"]
            assert said.startswith("the connection to the cluster is lost: nothing has answered at ")
            assert said.endswith("; start the server again when the cluster is back")
            assert send("GET", f"{url}/health").json()["status"] == "cluster lost"
            server.terminate()
            assert server.wait(60) == 128 + signal.SIGTERM, server.stderr.read()[-3000:]
        finally:
            server.kill()


def test_waiting_tasks_are_told_once_that_the_head_is_lost() -> None:
    from cachegraph.cluster.head import ClusterLost, Head

    told: list[Future[Any]] = []
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        head = Head(f"127.0.0.1:{bound.getsockname()[1]}", patience=0.0)
        with (
            head.telling(told.append),
            pytest.raises(ClusterLost, match=r"nothing has answered at .*Connection refused"),
        ):
            anyio.run(head.answered)
    assert [type(each.exception()) for each in told] == [ClusterLost]
    with pytest.raises(ClusterLost), head.telling(told.append):
        pass
    assert len(told) == 1
