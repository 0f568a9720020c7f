"""Processes of runs that are killed at random points: nothing is lost, nothing is done twice."""

import json
from pathlib import Path

import pytest
from forks import run_script

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "kill_runs.py"


def killed(folder: Path, model: str, trials: int, seed: int) -> dict[str, int]:
    options = ["--model", model, "--trials", str(trials), "--seed", str(seed), "--json"]
    counts: dict[str, int] = json.loads(run_script(SCRIPT, *options, folder=folder))
    return counts


@pytest.mark.parametrize(("model", "trials"), [("random", 3), pytest.param("demo", 1, marks=pytest.mark.models)])
def test_a_run_whose_process_is_killed_again_and_again_gives_what_an_undisturbed_one_does(
    model: str, trials: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if model == "demo":
        model = request.getfixturevalue("demo_models")["smollm2-135m-instruct"].name
    counts = killed(tmp_path, model, trials, seed=3)
    assert counts["trials"] == trials
    assert counts["kills"] > 0
    assert (counts["lost"], counts["done_twice"], counts["wrong_answers"]) == (0, 0, 0)
