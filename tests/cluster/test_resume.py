"""A run whose driver was killed is resumed on a cluster, and no finished turn is generated again."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from clusters import chain_recipe
from typer.testing import CliRunner

from cachegraph import Graph
from cachegraph.cli import app
from cachegraph.engine.spec import ModelSpec
from cachegraph.graph.store import Store

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster

# Prints the replicas' processes, and kills itself when the second agent's reply has begun.
DRIVER = """
import os, signal, sys
import anyio
from cachegraph import Graph
from cachegraph.cluster.connect import connect
from cachegraph.graph.run.events import TextDelta
from cachegraph.graph.store import Store

async def run(graph):
    async for event in graph.stream(store=Store(sys.argv[2])):
        if isinstance(event, TextDelta) and event.agent == "second":
            handles = [handle for replicas in cluster.sets.values() for handle in replicas.handles]
            print(*(handle.facts.process for handle in handles), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

with connect("local", cpus=1, object_store_bytes=100 << 20) as cluster:
    anyio.run(run, Graph.from_yaml(sys.argv[1], allow_paths=True).on_cluster(cluster))
"""


def is_running(process: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def test_a_run_is_resumed_after_its_driver_was_killed(
    models: dict[str, ModelSpec], cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachegraph.cluster.remote_agent import RemoteAgent

    recipe, kept = tmp_path / "chain.yaml", tmp_path / "runs.db"
    recipe.write_text(chain_recipe(models["small"].source, first=12, second=12, third=12))
    with Graph.from_yaml(recipe, allow_paths=True) as graph:
        expected = graph.run()
    command = [sys.executable, "-c", DRIVER, str(recipe), str(kept)]
    driver = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=280, check=False)
    assert driver.returncode == -signal.SIGKILL
    (stored,) = Store(kept).list(5)
    assert stored.turns == 1

    turns: list[str] = []
    turn = RemoteAgent.turn

    async def counted(agent: RemoteAgent, *given: Any) -> Any:
        turns.append(agent.name)
        return await turn(agent, *given)

    monkeypatch.setattr(RemoteAgent, "turn", counted)
    monkeypatch.setenv("CACHEGRAPH_STORE", str(kept))
    resumed = CliRunner().invoke(app, ["runs", "resume", stored.id, "--quiet", "--cluster", "local"])
    assert resumed.exception is None
    assert resumed.stdout == f"{expected.text}\n"
    assert turns == ["second", "third"]
    replies = {each.turn: each.recorded.text for each in Store(kept).get(stored.id).turns}
    assert replies == {name: agent.text for name, agent in expected.agents.items()}

    deadline = monotonic() + 60
    while any(map(is_running, map(int, driver.stdout.split()))):
        assert monotonic() < deadline, "a replica outlives its driver"
        sleep(0.2)
