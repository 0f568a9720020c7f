"""Processes of runs that are killed at random points: nothing is lost, nothing is done twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "kill_runs.py"


def killed(model: str, trials: int, seed: int) -> dict[str, int]:
    command: list[str | Path] = [
        sys.executable,
        SCRIPT,
        "--model",
        model,
        "--trials",
        str(trials),
        "--seed",
        str(seed),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


@pytest.mark.parametrize(("model", "trials"), [("random", 3), pytest.param("demo", 1, marks=pytest.mark.models)])
def test_a_run_whose_process_is_killed_again_and_again_gives_what_an_undisturbed_one_does(
    model: str, trials: int, request: pytest.FixtureRequest
) -> None:
    if model == "demo":
        model = request.getfixturevalue("demo_models")["smollm2-135m-instruct"].name
    counts = killed(model, trials, seed=3)
    assert counts["trials"] == trials
    assert counts["kills"] > 0
    assert (counts["lost"], counts["done_twice"], counts["wrong_answers"]) == (0, 0, 0)
