"""`cachegraph run --data`: a recipe on every row of a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Call

STEPS = """\
from pathlib import Path
def answer(question: str, tone: str) -> str:
    if question == "bad" and not (Path(__file__).parent / "mended").exists():
        raise ValueError("no idea")
    with open(Path(__file__).parent / "runs", "a") as file:
        file.write(question + "\\n")
    return f"{tone}: {question}"
"""
RECIPE = """\
version: 1
name: quick
inputs: {question: {}, tone: {default: calm}, count: {type: number, default: 1}}
agents: {answer: {function: "steps.py:answer"}}
output: answer
evaluate: {inputs: {question: q}, answer: a}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "steps.py").write_text(STEPS)
    (tmp_path / "quick.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*rows: dict[str, Any]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def replies() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def runs() -> list[str]:
    return sorted(Path("runs").read_text().split())


ARGUMENTS = ("run", "quick.yaml", "--allow-code", "--no-store", "--data", "rows.jsonl", "--out", "out.jsonl")


def test_every_row_has_a_reply_in_the_order_of_the_data(folder: Path, call: Call) -> None:
    write(*({"q": f"q{number}", "a": "x"} for number in range(30)))
    ended = call(*ARGUMENTS, "-i", "tone=loud")
    assert (ended.code, ended.out) == (0, "")
    assert "30 rows, 30 finished, in out.jsonl" in ended.err
    assert [(line["row"], line["status"], line["text"]) for line in replies()] == [
        (number, "finished", f"loud: q{number}") for number in range(30)
    ]


def test_a_failed_row_is_recorded_and_counted_and_the_same_command_tries_it_again(folder: Path, call: Call) -> None:
    write({"q": "one"}, {"q": "bad"}, {"q": 7, "tone": 3}, {"q": None}, {"tone": "x"})
    ended = call(*ARGUMENTS, "--json")
    facts = json.loads(ended.out)
    assert (ended.code, facts["exit_code"], facts["kind"]) == (1, 1, "RunError")
    assert (facts["rows"], facts["finished"], facts["failed"]) == (5, 2, 3)
    assert [line["status"] for line in replies()] == ["finished", "failed", "finished", "failed", "failed"]
    assert "no idea" in replies()[1]["error"]
    remedy = "add a column 'q' to the row, or for all rows give it with -i question=..."
    assert f"rows.jsonl, line 5: input 'question' is missing; {remedy}" in replies()[4]["error"]
    (folder / "mended").write_text("")
    write({"q": "one"}, {"q": "bad"}, {"q": 7, "tone": 3})
    assert call(*ARGUMENTS).code == 2  # rows 3 and 4 are none of this data
    write({"q": "one"}, {"q": "bad"}, {"q": 7, "tone": 3}, {"q": None}, {"tone": "x"})
    assert call(*ARGUMENTS).code == 1
    assert [line["status"] for line in replies()] == ["finished", "finished", "finished", "failed", "failed"]
    assert runs() == ["7", "bad", "one"]


def test_a_killed_batch_continues_behind_its_whole_lines(folder: Path, call: Call) -> None:
    write(*({"q": f"q{number}"} for number in range(6)))
    assert call(*ARGUMENTS).code == 0
    whole = Path("out.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    Path("out.jsonl").write_text("".join(lines[:3]) + lines[3][:25])
    Path("runs").unlink()
    ended = call(*ARGUMENTS, "--json")
    facts = json.loads(ended.out)
    assert (facts["earlier"], facts["finished"], runs()) == (3, 6, ["q3", "q4", "q5"])
    assert [line["text"] for line in replies()] == [f"calm: q{number}" for number in range(6)]
    Path("runs").unlink()
    assert call(*ARGUMENTS).code == 0
    assert not Path("runs").exists()


@pytest.mark.parametrize("text", ["mine", "mine\n", '{"row": 0}\n', "[1]\n", '{"row": 0, "key": "0"}\n', "\xff\n"])
def test_a_file_of_something_else_is_refused_and_stays(folder: Path, call: Call, text: str) -> None:
    write({"q": "one"})
    Path("out.jsonl").write_text(text)
    ended = call(*ARGUMENTS)
    assert (ended.code, Path("out.jsonl").read_text()) == (2, text)
    assert "give --out another name" in ended.err


def test_replies_of_another_recipe_or_other_inputs_are_not_taken_for_these(folder: Path, call: Call) -> None:
    write({"q": "one"})
    assert call(*ARGUMENTS).code == 0
    assert call(*ARGUMENTS, "-i", "tone=loud").code == 2
    (folder / "quick.yaml").write_text(RECIPE.replace("calm", "new"))
    assert call(*ARGUMENTS).code == 2
    assert [line["text"] for line in replies()] == ["calm: one"]


def test_cells_of_a_table_become_the_types_of_inputs(folder: Path, call: Call) -> None:
    (folder / "rows.csv").write_text("q,count\none,3\ntwo,three\n")
    arguments = [each.replace("rows.jsonl", "rows.csv") for each in ARGUMENTS]
    assert call(*arguments).code == 1
    assert [line["status"] for line in replies()] == ["finished", "failed"]
    assert "'count' is of type 'number'" in replies()[1]["error"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "rows.jsonl"), "give both"),
        (("--out", "out.jsonl"), "give both"),
        ((*ARGUMENTS[4:], "--session", "s"), "no --session"),
        ((*ARGUMENTS[4:], "-c", "text", "-c", "cache"), "at most one --channel"),
        (("--data", "none.jsonl", "--out", "out.jsonl"), "none.jsonl"),
        ((*ARGUMENTS[4:], "-i", "nothing=1"), "there is no input 'nothing'"),
        (("--data", "wrong.jsonl", "--out", "out.jsonl"), "no row of 'wrong.jsonl' fits the recipe"),
    ],
)
def test_what_a_batch_can_not_do_is_one_sentence_and_no_file(
    folder: Path, call: Call, arguments: tuple[str, ...], words: str
) -> None:
    write({"q": "one"})
    (folder / "wrong.jsonl").write_text('{"x": "one"}\n{"x": "two"}\n')
    ended = call("run", "quick.yaml", "--allow-code", *arguments)
    assert ended.code == 2
    assert words in ended.err
    assert not Path("out.jsonl").exists()
