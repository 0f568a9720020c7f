"""cachegraph runs: the store from the command line."""

import json
from pathlib import Path

import pytest

from .conftest import Call


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHEGRAPH_STORE", str(tmp_path / "runs.db"))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path / "runs.db"


def ids(call: Call) -> list[str]:
    return [run["id"] for run in json.loads(call("runs", "list", "--json").out)]


def test_a_run_is_kept_and_shown_unless_it_is_told_not_to(recipes: Path, call: Call, place: Path) -> None:
    assert call("run", recipes / "duo.yaml", "-i", "question=what", "--no-store").code == 0
    assert not place.exists()
    ended = call("run", recipes / "duo.yaml", "-i", "question=what")
    (run,) = ids(call)
    assert f"run {run}" in ended.err
    listed = call("runs", "list").out
    assert [word in listed for word in (run, "duo", "finished")] == [True] * 3
    shown = call("runs", "show", run[:5]).out
    assert all(word in shown for word in (run, "input question: what", "reader", "writer", str(recipes / "duo.yaml")))
    assert call("runs", "show", run, "--turn", "writer").out == ended.out
    whole = json.loads(call("runs", "show", run, "--json").out)
    assert [turn["turn"] for turn in whole["turns"]] == ["reader", "writer"]
    assert whole["setting"]["inputs"] == {"question": "what"}


def test_quiet_prints_no_id_and_json_has_it(recipes: Path, call: Call) -> None:
    assert call("run", recipes / "duo.yaml", "-i", "question=what", "-q").err == ""
    result = json.loads(call("run", recipes / "duo.yaml", "-i", "question=what", "--json").out)
    assert result["run_id"] == ids(call)[0]


def test_a_failed_run_says_how_to_go_on_and_goes_on(recipes: Path, call: Call, tmp_path: Path) -> None:
    recipe = tmp_path / "failing.yaml"
    text = (recipes / "failing.yaml").read_text().replace("./llama", str(recipes / "llama"))
    recipe.write_text(text)
    ended = call("run", recipe, "-i", "question=x", "--allow-paths")
    (run,) = ids(call)
    assert f"cachegraph runs resume {run}" in ended.err
    assert "writer (failed)" in call("runs", "show", run).out
    again = call("runs", "resume", run[:6])
    assert again.code == 1  # its timeout is as it was
    assert "has changed" not in again.err
    recipe.write_text(text.replace("timeout: 0.000001", "timeout: 100"))
    assert "failing.yaml has changed since the run began; the run continues with the old recipe" in " ".join(
        call("runs", "resume", run).err.split()
    )


def test_a_finished_run_is_not_resumed(recipes: Path, call: Call) -> None:
    call("run", recipes / "duo.yaml", "-i", "question=what", "-q")
    (run,) = ids(call)
    ended = call("runs", "resume", run)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[-1].startswith(f"cachegraph: run '{run}' has finished")


def test_a_run_that_asks_ends_with_4_and_goes_on_with_an_answer(recipes: Path, call: Call, tmp_path: Path) -> None:
    text = (recipes / "duo.yaml").read_text().replace("./llama", str(recipes / "llama"))
    text = text.replace("agents:\n", 'agents:\n  ok: {pause: "{{ reader }} Go on?"}\n').replace(
        "{{ reader }} {{", "{{ ok }} {{"
    )
    text = text.replace(
        "  - {from: reader, to: writer, channel: cache, carries: reply}\n",
        "  - {from: reader, to: ok}\n  - {from: ok, to: writer}\n",
    )
    recipe = tmp_path / "asks.yaml"
    recipe.write_text(text)
    ended = call("run", recipe, "-i", "question=x", "--allow-paths")
    (run,) = ids(call)
    assert (ended.code, ended.out) == (4, "")
    assert "ok asks:" in ended.err
    assert "Go on?" in ended.err
    assert f"cachegraph runs resume {run} --answer" in ended.err
    assert "ok (paused)" in call("runs", "show", run).out
    assert call("runs", "resume", run).code == 2
    (tmp_path / "answer.txt").write_text("yes, please\n")
    both = call("runs", "resume", run, "--answer", "yes", "--answer-file", tmp_path / "answer.txt")
    assert "are both given" in both.err
    assert "can't be read" in call("runs", "resume", run, "--answer-file", tmp_path / "nowhere.txt").err
    assert call("runs", "resume", run, "--answer-file", tmp_path / "answer.txt", "-q").code == 0
    assert call("runs", "show", run, "--turn", "ok").out == "yes, please\n"
    refused = call("run", recipe, "-i", "question=x", "--allow-paths", "--no-store")
    assert (refused.code, "without --no-store" in refused.err) == (2, True)


def test_runs_are_removed_and_pruned(recipes: Path, call: Call) -> None:
    for _ in range(3):
        call("run", recipes / "duo.yaml", "-i", "question=what", "-q")
    first, second, third = ids(call)
    assert call("runs", "rm", first, second[:8]).out == f"removed {first}, {second}\n"
    assert ids(call) == [third]
    assert call("runs", "prune", "--older-than", "1h").out == "removed 0 runs\n"
    assert call("runs", "prune", "--older-than", "0s", "--json").out == '{"removed": 1}\n'
    assert ids(call) == []


def test_long_lists_come_in_pages(recipes: Path, call: Call) -> None:
    for _ in range(2):
        call("run", recipes / "duo.yaml", "-i", "question=what", "-q")
    page = call("runs", "list", "-n", "1")
    assert page.err == "More: --skip 1\n"
    assert ids(call)[1] in call("runs", "list", "--skip", "1").out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "nobody"], 2, "there is no run 'nobody'"),
        (["rm", "nobody"], 2, "there is no run 'nobody'"),
        (["resume", "nobody"], 2, "there is no run 'nobody'"),
        (["prune", "--older-than", "yesterday"], 2, "needs a number and a unit, such as 90m"),
    ],
)
def test_what_is_asked_wrongly_is_answered_with_a_sentence(
    call: Call, arguments: list[str], code: int, said: str
) -> None:
    ended = call("runs", *arguments)
    assert ended.code == code
    assert said in ended.err


def test_a_store_of_no_use_is_said_before_a_model_is_loaded(recipes: Path, call: Call, place: Path) -> None:
    place.write_text("Dear diary, " * 100)
    ended = call("run", recipes / "duo.yaml", "-i", "question=what")
    assert ended.code == 3
    assert "damaged, or no run store" in ended.err
    assert call("run", recipes / "duo.yaml", "-i", "question=what", "--no-store").code == 0
