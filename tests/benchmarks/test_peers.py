"""The comparison with other runtimes runs, with those that are installed, and says who is left out."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_overhead_is_measured_for_all_who_are_there_and_the_others_are_named() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/peers/overhead.py"), "--agents", "20", "--rounds", "1", "--json"]
    variables = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    for rows in (report["overhead"]["chain"], report["overhead"]["fan_out"]):
        assert rows["cachegraph"]["ratio"] == 1.0
        assert rows["cachegraph, SQLite"]["microseconds"] > 0
        everybody = rows.keys() | report["missing"].keys()
        assert everybody >= {"pydantic-graph", "langgraph", "langgraph, SQLite"}


def test_every_version_of_a_peer_is_pinned() -> None:
    lines = (ROOT / "benchmarks/peers/requirements.txt").read_text().splitlines()
    peers = [line for line in lines if line.startswith(("langgraph", "pydantic-graph"))]
    assert len(peers) == 3
    assert all("==" in line for line in peers)
