"""cachegraph show --run: a run of the store, or a result's file."""

import json
from pathlib import Path

from .conftest import Call


def test_a_run_of_the_store_is_drawn_by_its_id_with_or_without_the_recipe(recipes: Path, call: Call) -> None:
    call("run", recipes / "duo.yaml", "-i", "question=x", "-q")
    run, *_ = json.loads(call("runs", "list", "--json").out)  # the newest
    drawn = call("show", recipes / "duo.yaml", "--run", run["id"])
    assert drawn.code == 0
    assert f"duo: run {run['id']}, finished after " in drawn.out
    assert "from reader: cache" in drawn.out
    assert call("show", "--run", run["id"][:6]).out == drawn.out
    assert call("show", "--run", run["id"], "-f", "svg").out.startswith("<svg")
    assert ":::finished" in call("show", "--run", run["id"], "-f", "mermaid").out


def test_a_result_in_a_file_is_drawn_on_its_recipe(recipes: Path, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(call("run", recipes / "duo.yaml", "-i", "question=x", "--json", "--no-store").out)
    assert "from reader: cache" in call("show", recipes / "duo.yaml", "--run", path).out
    assert "name the recipe too" in call("show", "--run", path).err


def test_what_can_not_be_drawn_is_said_in_one_sentence(recipes: Path, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    for arguments, said in (
        ([], "show needs a recipe's file, or --run"),
        ([recipes / "duo.yaml", "--run", "none"], "none"),
        ([recipes / "duo.yaml", "--run", path], "give what `cachegraph run --json` printed"),
    ):
        ended = call("show", *arguments)
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.err
        assert ended.err.count("\n") == 1
