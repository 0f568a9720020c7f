"""The benchmark of the runtime runs, and nothing in the runtime grows with the square of the agents."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "runtime_overhead.py"


def measured(agents: int) -> dict[str, dict[str, float]]:
    command = [sys.executable, str(BENCHMARK), "--agents", str(agents), "--rounds", "3", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    report: dict[str, dict[str, float]] = json.loads(run.stdout)["microseconds"]
    return report


def test_an_agent_costs_the_same_among_many_as_among_few() -> None:
    few, many = measured(200), measured(2000)
    for shape in ("chain", "fan_out"):
        assert many[shape]["cachegraph"] < 5 * few[shape]["cachegraph"]
