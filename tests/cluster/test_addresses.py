"""Runs join a cluster of processes that `ray start` has started, as one of its nodes and as a client."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

import pytest

from cachegraph import Graph
from cachegraph.engine.spec import ModelSpec

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster

RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
CLI = [sys.executable, "-m", "cachegraph"]

RECIPE = """
version: 1
name: pair
models: {{small: {{source: {source}, dtype: float32}}}}
agents:
  reader: {{model: small, prompt: the sky is blue, generate: {{max_new_tokens: 8}}}}
  answerer: {{model: small, prompt: "{{{{ reader }}}} what?", generate: {{max_new_tokens: 8}}}}
edges: [{{from: reader, to: answerer, channel: cache}}]
output: answerer
"""


class Head(NamedTuple):
    """A cluster's address for its nodes and for clients, and the token that both need."""

    node: str
    client: str
    token: str


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A node on this machine, which asks for a token."""
    folder = tempfile.mkdtemp(prefix="ray-")  # Ray's sockets need a short path
    port, client = free_ports(2)
    token = secrets.token_hex(32)
    options = ["--head", "--block", "--num-cpus=1", "--include-dashboard=false", "--disable-usage-stats"]
    ends = ["--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={client}"]
    least = ["--object-store-memory=150000000", f"--temp-dir={folder}", "--min-worker-port=0", "--max-worker-port=0"]
    environ = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with Path(folder, "log").open("w") as log:
        process = subprocess.Popen([*RAY, "start", *options, *ends, *least], env=environ, stdout=log, stderr=log)
    try:
        started = Head(f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}", token)
        answers(started)
        yield started
    finally:
        process.terminate()  # and Ray ends its processes
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def answers(head: Head) -> None:
    """Wait until both ends accept connections."""
    deadline = monotonic() + 120
    for address in (head.node, head.client):
        host, port = address.removeprefix("ray://").split(":")
        while True:
            with suppress(OSError):
                socket.create_connection((host, int(port)), 5).close()
                break
            assert monotonic() < deadline, "Ray has not started"
            sleep(0.2)


def run(recipe: Path, address: str, head: Head, token: str) -> "subprocess.CompletedProcess[str]":
    environ = os.environ | {"CACHEGRAPH_HOME": str(recipe.parent), "RAY_ADDRESS": head.node}
    environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    command = [*CLI, "run", str(recipe), "--allow-paths", "--no-store", "--json", "--cluster", address]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def recipe(models: dict[str, ModelSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two agents and a cache between them."""
    path = tmp_path_factory.mktemp("recipe") / "pair.yaml"
    path.write_text(RECIPE.format(source=models["small"].source))
    return path


def test_a_run_is_the_same_on_a_node_and_for_a_client(recipe: Path, head: Head) -> None:
    with Graph.from_yaml(recipe, allow_paths=True) as graph:
        expected = graph.run().text
    for address in ("auto", head.client):
        done = run(recipe, address, head, head.token)
        assert done.stderr == ""
        assert json.loads(done.stdout)["text"] == expected


def test_a_client_with_another_token_is_told_of_it(recipe: Path, head: Head) -> None:
    done = run(recipe, head.client, head, secrets.token_hex(32))
    assert done.returncode == 3
    assert f"there is no cluster at '{head.client}'" in done.stderr
    assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in done.stderr
