"""Studies train each fuser once, continue one that was stopped, and run the parts that are asked for."""

import json
import sys
from pathlib import Path

import foreign_words
import pytest
import study

Commands = list[tuple[str, ...]]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """The commands that studies run, instead of running them."""
    ran: Commands = []
    monkeypatch.setattr(study, "run_command", lambda *arguments: ran.append(arguments))
    return ran


def test_a_fuser_is_trained_once_and_a_training_that_was_stopped_is_resumed(commands: Commands, tmp_path: Path) -> None:
    made = tmp_path / "fuser"
    study.train("word-duo", tmp_path, made, "--seed", "1")
    (tmp_path / "fuser.training" / "step-10").mkdir(parents=True)
    study.train("word-duo", tmp_path, made, "--seed", "1")
    made.mkdir()
    (made / "card.json").write_text("{}")
    assert study.train("word-duo", tmp_path, made, "--seed", "1") == made
    first, second = commands
    assert first[0] == "train"
    assert first[1].endswith("recipes/train/word-duo.yaml")
    assert Path(first[1]).is_file()
    assert second == (*first, "--resume")


@pytest.mark.parametrize(("chosen", "expected"), [((), ["one", "two"]), (("--part", "two"), ["two"])])
def test_all_parts_run_or_the_one_that_is_named(
    chosen: tuple[str, ...], expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[str] = []
    out = tmp_path / "new" / "out"
    monkeypatch.setattr(sys, "argv", ["study", "--data-folder", str(tmp_path), "--out", str(out), *chosen])
    study.run_parts("A study.", {name: lambda *_, name=name: ran.append(name) for name in ("one", "two")})
    assert ran == expected
    assert out.is_dir()


def test_trials_print_the_dev_scores_that_their_trainings_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"kind": "step", "loss": 2.0}, {"kind": "judgement", "step": 50, "accuracy": 0.75}]
    for name in foreign_words.TRIED:
        folder = tmp_path / f"tried-{name}"
        folder.mkdir()
        (folder / "card.json").write_text("{}")
        (tmp_path / f"{folder.name}.training").mkdir()
        log = tmp_path / f"{folder.name}.training" / "log.jsonl"
        log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    foreign_words.tried(tmp_path, tmp_path)
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"{name} {json.dumps(lines[1])}" for name in foreign_words.TRIED]
