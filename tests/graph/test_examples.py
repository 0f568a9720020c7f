import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cachegraph.errors import ConfigError, InputError
from cachegraph.graph.data.dataset import read_rows
from cachegraph.graph.data.examples import Example, data_hash, make_examples, merge_mapping
from cachegraph.graph.recipe.spec import GraphSpec

SPEC = GraphSpec.model_validate(
    {
        "version": 1,
        "name": "qa",
        "inputs": {"question": {}, "tone": {"default": "plain"}},
        "agents": {"a": {"model": "m", "prompt": "{{ question }} {{ tone }}"}},
        "output": "a",
    }
)
GOOD = {"question": "Why?", "choices": ["so", "not"], "answer": 1, "id": "w"}


def examples(*rows: Mapping[str, Any], **columns: str) -> list[Example]:
    return make_examples(read_rows(rows), SPEC, merge_mapping(SPEC.evaluate, columns, list(SPEC.inputs)))


def test_a_row_of_usual_columns_needs_no_mapping() -> None:
    (example,) = examples(GOOD)
    assert example == Example(
        index=0,
        id="w",
        inputs={"question": "Why?", "tone": "plain"},
        choices=("so", "not"),
        answer=1,
        references=("not",),
    )


def test_columns_are_mapped_and_may_be_nested_as_on_the_hub() -> None:
    row = {"q": "Why?", "c": {"text": ["so", "not"], "label": ["A", "B"]}, "key": "B", "style": "rude"}
    (example,) = examples(row, question="q", tone="style", choices="c.text", labels="c.label", answer="key")
    assert (example.inputs, example.answer) == ({"question": "Why?", "tone": "rude"}, 1)


def test_open_questions_have_references() -> None:
    assert examples({"question": "Why?", "answer": "so"})[0].references == ("so",)
    rows = {"question": "Why?", "answers": {"text": ["so", "thus"]}}
    assert examples(rows, references="answers.text")[0].references == ("so", "thus")
    assert examples({"question": "Why?"})[0].references == ()


@pytest.mark.parametrize("answer", [1, "1", "not"])
def test_an_answer_is_an_index_or_a_text(answer: Any) -> None:
    assert examples({**GOOD, "answer": answer})[0].answer == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "row 1: input 'question' must be text"),
        ({"choices": "so|not"}, "row 1: column 'choices' must hold a list"),
        ({"choices": ["so"]}, "row 1: column 'choices' has 1 choices"),
        ({"choices": ["so", " "]}, "row 1: column 'choices': choice 1 is empty"),
        ({"choices": ["so", None]}, "row 1: column 'choices': choice 1 is not text but NoneType"),
        ({"answer": 2}, "row 1: column 'answer': the answer 2 is out of range; the 2 choices count from 0"),
        ({"answer": -1}, "row 1: column 'answer': the answer -1 is out of range"),
        ({"answer": True}, "row 1: column 'answer' must hold the right choice's index or text, not True"),
        ({"answer": "maybe"}, "row 1: column 'answer': 'maybe' is neither an index nor one of the choices"),
        ({"choices": ["1", "0"], "answer": "1"}, "row 1: column 'answer': '1' may be an index or a choice"),
    ],
)
def test_a_wrong_row_is_named_with_its_column(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        examples({**GOOD, **change})


def test_a_missing_column_is_named_with_what_was_meant() -> None:
    with pytest.raises(
        InputError, match="row 2: there is no column 'question' for input 'question'; did you mean 'qestion'"
    ):
        examples(GOOD, {"qestion": "Why?", "choices": ["a", "b"], "answer": 0})
    with pytest.raises(InputError, match="row 1: there is no column 'answer'"):
        examples({"question": "Why?", "choices": ["a", "b"]})


def test_a_label_that_is_none_of_the_choices_is_named() -> None:
    with pytest.raises(InputError, match="'C' is not one of the labels"):
        examples({**GOOD, "l": ["A", "B"], "answer": "C"}, labels="l")


def test_many_wrong_rows_are_shown_together_but_not_all() -> None:
    with pytest.raises(InputError, match=r"row 1: .*(\n.*)*row 5: .*\n\(and 3 more rows\)"):
        examples(*[{**GOOD, "answer": 9}] * 8)


def test_rows_must_be_of_one_kind() -> None:
    with pytest.raises(InputError, match="row 2: this row lacks choices"):
        examples(GOOD, {"question": "Why?", "references": "so"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"qestion": "q"}, "'qestion' is neither.*did you mean 'question'"), ({"id": ""}, "no column")],
)
def test_a_mapping_of_nothing_is_an_input_error(columns: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        examples(GOOD, **columns)


def test_files_of_all_kinds_hold_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps(GOOD) + "\n\n" + json.dumps(GOOD))
    (tmp_path / "a.json").write_text(json.dumps([GOOD, GOOD]))
    (tmp_path / "a.csv").write_text("question,choices,answer,id\n" + 'Why?,"[""so"", ""not""]",1,w\n' * 2)
    hashes = set()
    for name in ("a.jsonl", "a.json", "a.csv"):
        made = make_examples(read_rows(tmp_path / name), SPEC, merge_mapping(None, {}, ["question", "tone"]))
        hashes.add(data_hash(made))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "'a.jsonl' has no rows"),
        ("a.csv", "question,choices\n", "'a.csv' has no rows"),
        ("a.jsonl", '{"a": 1}\n{"a": ', "a.jsonl, line 2: this is not JSON"),
        ("a.jsonl", "[1]", "a.jsonl, line 1: a row is a mapping from columns to values, not a list"),
        ("a.json", "{}", "'a.json' must hold a list of rows"),
        ("a.csv", "a,b\n1,2\n3\n", "a.csv, line 3: the row has more or fewer cells"),
        ("a.csv", 'a,b\n1,"2\n', "a.csv, line 2: this is not CSV"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / name)


def test_a_file_that_is_no_text_or_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="'a.jsonl' is not UTF-8"):
        read_rows(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="No such file"):
        read_rows("nowhere.jsonl")


@pytest.mark.parametrize("name", ["n" * 5000, "nul\0", "~nobody-of-that-name/rows"])
def test_a_name_that_no_path_can_have_is_named(name: str) -> None:
    with pytest.raises(InputError, match="can't be used"):
        read_rows(name)


def test_the_hub_is_asked_for_what_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((name, config, split))
        if name == "none/such":
            raise FileNotFoundError("doesn't exist on the Hub\nmore lines")
        return [GOOD]

    monkeypatch.setitem(__import__("sys").modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read_rows("owner/name:main@validation")[0].place == "owner/name:main@validation, row 1"
    read_rows("owner/name")
    assert asked == [("owner/name", "main", "validation"), ("owner/name", None, "test")]
    with pytest.raises(
        InputError, match=r"no file 'none/such', and the hub gives no such data set \(doesn't exist on the Hub\)"
    ):
        read_rows("none/such")


def test_without_the_extra_the_hub_is_a_matter_of_installing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'cachegraph\[eval\]'"):
        read_rows("owner/name")
