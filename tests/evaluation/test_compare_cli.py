import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cachegraph import Comparison
from cachegraph.cli import app, fetch
from cachegraph.errors import CachegraphError, InputError
from cachegraph.graph.data.dataset import read_rows
from cachegraph.graph.data.examples import make_examples, merge_mapping
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.load import load_recipe

from .conftest import rows, story_graph

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caches_travel: None) -> Path:
    """A working folder with data and a recipe whose agents follow a script."""
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows()))
    (tmp_path / "recipe.yaml").write_text(story_graph().to_yaml())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(fetch, "fetch_models", lambda *_: None)
    monkeypatch.setattr(Graph, "from_yaml", lambda *_, **__: story_graph())
    return tmp_path


def run(*args: str) -> Result:
    result = CliRunner().invoke(app, ["compare", "../recipe.yaml", "--data", "../q.jsonl", *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_tables_and_verdicts_are_printed_and_results_kept_in_this_folder(folder: Path) -> None:
    result = run()
    assert result.exit_code == 0
    assert "story, 40 examples" in result.stdout
    assert "what the cache carries is used" in result.stdout
    (kept,) = (folder / "work").iterdir()
    assert kept.name.startswith("cachegraph-compare-")
    assert kept.name in result.stderr
    again = run()  # the same command goes on, here from the end
    assert again.stdout == result.stdout
    assert len(list((folder / "work").iterdir())) == 1


def test_a_variant_that_can_not_run_is_told_before_the_others_are_played(folder: Path) -> None:
    result = run("--variants", "text,identical", "--limit", "5")
    assert "identical can't run: every agent before the output runs its model already" in result.stderr
    assert "not available" in result.stdout


def test_categories_effects_and_a_csv_file_are_one_option_each(folder: Path) -> None:
    result = run("--by", "answer", "--csv", "rows.csv", "--limit", "12")
    assert "by answer" in result.stdout
    assert "p, corrected for 6 comparisons (Holm), is below" in result.stdout
    assert "detectable: the smallest difference that as many examples show with 80 % power" in result.stdout
    assert "same choice as text %" in result.stdout
    assert "bytes a position" in result.stdout
    lines = (folder / "work" / "rows.csv").read_text().splitlines()
    assert lines[0].startswith("variant,seed,index,id,category,accuracy,")
    assert len(lines) == 1 + 4 * 12


def test_the_plan_of_swapping_edges_is_printed_before_and_the_judgement_behind(folder: Path) -> None:
    result = run("--edges", "--limit", "12", "--concurrency", "2")
    plan, forecast = (
        "plan: 4 variants, one edge at a time for 1 edge and their controls; 12 examples each",
        "runs are left",
    )
    assert plan in result.stderr
    assert "40 of 48 runs are left, about 0 s" in result.stderr
    assert result.stderr.index(plan) < result.stderr.index(forecast)
    assert "reader → answerer: no difference shown between cache:reader:answerer and text" in result.stdout


def test_json_is_the_summary_and_nothing_else(folder: Path) -> None:
    found = json.loads(run("--json", "--variants", "text,cache", "--limit", "9", "--quiet").stdout)
    assert [row["name"] for row in found["rows"]] == ["text", "cache"]
    assert found["environment"]["limit"] == 9
    assert "records" not in found


def test_the_whole_comparison_is_saved(folder: Path) -> None:
    run("--save", "c.json", "--out", "r.jsonl", "-m", "contains", "--seeds", "2", "--seed", "4")
    found = Comparison.load(folder / "work" / "c.json")
    assert [metric.name for metric in found.metrics] == ["contains"]
    assert found.environment.seeds == [4, 5]
    assert {each.name for each in (folder / "work").iterdir()} == {"c.json", "r.jsonl"}


def test_results_beside_those_of_another_comparison_are_said_to_be_there(folder: Path) -> None:
    assert "these results are in" not in run("--out", "r.jsonl", "--limit", "5").stderr
    said = run("--out", "r.jsonl", "--limit", "6").stderr
    (beside,) = (path.name for path in (folder / "work").iterdir() if path.name != "r.jsonl")
    assert "r.jsonl holds another comparison" in said
    assert f"these results are in {beside}" in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--metric", "os:system"], "is a function; pass it to cachegraph.compare in Python"),
        (["--map", "question"], "--map wants NAME=COLUMN"),
        (["--map", "id=a", "--map", "id=b"], "'id' is mapped twice"),
        (["--map", "question=q"], "line 1: there is no column 'q' for input 'question'"),
        (["--variants", "text,cash"], "no variant 'cash'"),
        (["--out", "none/r.jsonl"], "its folder does not exist"),
        (["--report", "."], "it is a folder"),
        (["--csv", "none/r.csv"], "its folder does not exist"),
        (["--by", "answr"], "q.jsonl, line 1: there is no column 'answr' for the categories; did you mean 'answer'"),
    ],
)
def test_what_is_wrong_is_said_before_models_are_fetched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.setattr(fetch, "fetch_models", lambda *_: pytest.fail("too late"))
    with pytest.raises(CachegraphError, match=message):
        run(*args)


def test_a_missing_option_is_a_usage_error() -> None:
    result = CliRunner().invoke(app, ["compare", "recipe.yaml"])
    assert result.exit_code == 2


@pytest.mark.parametrize(("name", "more"), [("story-qa", {"context": "Once."}), ("choice-duo", {})])
def test_shipped_recipes_take_the_usual_columns(name: str, more: dict[str, Any]) -> None:
    spec = load_recipe(RECIPES / f"{name}.yaml")
    row = {"question": "Who?", "choices": ["a", "b"], "answer": 0, **more}
    (example,) = make_examples(read_rows([row]), spec, merge_mapping(spec.evaluate, {}, list(spec.inputs)))
    assert example.inputs == {"question": "Who?", **more}
    del row["question"]
    with pytest.raises(InputError, match="there is no column 'question'"):
        make_examples(read_rows([row]), spec, merge_mapping(spec.evaluate, {}, list(spec.inputs)))
