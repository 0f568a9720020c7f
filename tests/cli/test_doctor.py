"""cachegraph doctor: what a machine has, and what is wrong with it."""

import json
from pathlib import Path

import pytest

from .conftest import Call


def test_it_says_what_is_there_and_what_auto_makes_of_it(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home_of_the_tests: Path
) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "kernels").symlink_to(home_of_the_tests / "kernels")  # else it compiles them
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "new"))
    monkeypatch.setenv("CACHEGRAPH_KV_MEMORY", "3GB")
    ended = call("doctor", "--json")
    assert ended.code == 0
    facts = json.loads(ended.out)
    assert facts["versions"].keys() == {"cachegraph", "python", "torch", "transformers", "anyio"}
    (cpu,) = [each for each in facts["devices"] if each["name"] == "cpu"]
    assert cpu["kv_budget_bytes"] == 3_000_000_000
    assert cpu["free_bytes"] > 0
    assert facts["auto"].split()[0] in {each["name"] for each in facts["devices"]}
    assert (facts["models"], facts["problems"]) == ({}, [])
    assert facts["home_free_bytes"] > 0
    shown = call("doctor").out
    assert "CACHEGRAPH_KV_MEMORY=3GB" in shown
    assert "none yet" in shown


def test_what_keeps_models_from_running_ends_with_exit_code_3(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("CACHEGRAPH_KV_MEMORY", "plenty")
    ended = call("doctor", "--json")
    assert ended.code == 3
    problems = json.loads(ended.out)["problems"]
    assert any("CACHEGRAPH_KV_MEMORY is 'plenty', which is not a size" in each for each in problems)
    assert any("point CACHEGRAPH_HOME to a folder of yours" in each for each in problems)
    assert ended.err.count("\n") == 1


def test_a_second_run_store_of_an_earlier_version_is_told(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cachegraph.common.paths.home", lambda: tmp_path / "cache")
    monkeypatch.setattr("cachegraph.common.paths.data_home", lambda: tmp_path / "data")
    for folder in ("cache", "data"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "runs.db").write_text("")
    ended = call("doctor", "--json")
    assert ended.code == 0
    (note,) = json.loads(ended.out)["notes"]
    assert repr(str(tmp_path / "cache" / "runs.db")) in note
    assert "set CACHEGRAPH_STORE to it, else delete it" in note
    assert f"note: {note}" in call("doctor").out
    (tmp_path / "data" / "runs.db").unlink()  # then it is not a second one: the next run moves it
    assert json.loads(call("doctor", "--json").out)["notes"] == []
