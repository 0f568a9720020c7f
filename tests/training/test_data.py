import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cachegraph.errors import ConfigError, InputError
from cachegraph.graph.recipe.spec import GraphSpec
from cachegraph.training.data.data_spec import DataSpec
from cachegraph.training.data.dataset import TrainingExample, read_examples, split_dev

QUESTION = {"question": "Who ran?", "choices": ["Ann", "Bob"], "answer": 1}
USER, REPLY = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}


def graph(**inputs: Any) -> GraphSpec:
    prompt = " ".join(f"{{{{ {name} }}}}" for name in inputs)
    agents = {"a": {"model": "m", "prompt": prompt}}
    return GraphSpec.model_validate({"version": 1, "name": "g", "inputs": inputs, "agents": agents, "output": "a"})


ASKS = graph(question={}, context={"default": ""})
PROMPTS = graph(prompt={})
CHATS = graph(prompt={}, history={"default": ""}, system={"default": ""})


def read(folder: Path, rows: Any, of: GraphSpec = ASKS, *told: Any, **spec: Any) -> list[TrainingExample]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSpec(source="rows.jsonl", **spec)
    return read_examples(data.sources, data, of, folder, *told)


@pytest.mark.parametrize("answer", [1, "1", "B", "Bob"])
def test_the_response_of_a_question_is_its_right_choice(tmp_path: Path, answer: Any) -> None:
    (example,) = read(tmp_path, [{**QUESTION, "answer": answer}])
    assert (example.response, example.choices, example.answer) == ("Bob", ("Ann", "Bob"), 1)
    assert example.inputs == {"question": "Who ran?", "context": ""}


def test_a_letter_that_is_a_choice_itself_means_that_choice(tmp_path: Path) -> None:
    (example,) = read(tmp_path, [{**QUESTION, "choices": ["B", "A"], "answer": "A"}])
    assert example.answer == 1


def test_a_prompt_and_its_response_may_have_columns_of_other_names(tmp_path: Path) -> None:
    usual = read(tmp_path, [{"prompt": "Why?", "response": "So."}], PROMPTS)
    named = read(tmp_path, [{"p": "Why?", "r": "So."}], PROMPTS, columns={"prompt": "p", "references": "r"})
    assert usual == named
    assert (usual[0].inputs, usual[0].response, usual[0].choices) == ({"prompt": "Why?"}, "So.", ())


def test_a_chat_gives_what_its_last_reply_answers_and_what_was_said_before(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "And"}, {"role": "user", "content": "then?"}]
    chat = [{"role": "system", "content": "Be brief."}, USER, REPLY, *asked, {**REPLY, "content": "Rain."}, USER]
    (example,) = read(tmp_path, [{"messages": chat}], CHATS)
    assert example.response == "Rain."
    assert example.inputs == {
        "prompt": "And\n\nthen?",
        "history": "user: Why?\n\nassistant: So.",
        "system": "Be brief.",
    }


def test_both_ways_of_writing_a_chat_say_the_same(tmp_path: Path) -> None:
    shared = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    assert read(tmp_path, [{"conversations": shared}], CHATS) == read(tmp_path, [{"messages": [USER, REPLY]}], CHATS)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("Why?", "column 'messages' must hold a list of messages"),
        ([USER], "no reply to a user's message"),
        ([REPLY], "no reply to a user's message"),
        ([REPLY, REPLY], "no reply to a user's message"),
        ([{"role": "tool", "content": "3"}, REPLY], "role 'tool'; the roles are 'human', 'user'"),
        ([{"role": ["user"], "content": "3"}, REPLY], r"role \['user'\]; the roles are"),
        ([{"role": "user", "content": [{"type": "image"}]}, REPLY], "role 'user' that holds no text but .*image"),
    ],
)
def test_a_chat_that_has_no_reply_to_learn_is_named(tmp_path: Path, chat: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"rows.jsonl, line 2: .*{message}"):
        read(tmp_path, [{"messages": [USER, REPLY]}, {"messages": chat}], CHATS)


@pytest.mark.parametrize("row", [{"prompt": "Why?"}, {"prompt": "Why?", "response": " "}])
def test_a_row_without_a_response_is_named_not_its_neighbour(tmp_path: Path, row: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"^rows.jsonl, line 2: there is no response; name its column"):
        read(tmp_path, [{"prompt": "Why?", "response": "So."}, row], PROMPTS)


def test_half_a_character_is_mended_before_a_tokenizer_meets_it(tmp_path: Path) -> None:
    (example,) = read(tmp_path, [{"prompt": "a \ud83d", "response": "So."}], PROMPTS)
    assert example.inputs == {"prompt": "a \ufffd"}


def test_many_bad_rows_are_shown_together_but_not_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: (.*\n)*rows.jsonl, line 5: .*\n\(and 3 more rows\)$"):
        read(tmp_path, [{**QUESTION, "answer": 9}] * 8)


def test_bad_rows_are_left_out_and_told_where_that_is_wanted(tmp_path: Path) -> None:
    rows, skipped = [QUESTION, {**QUESTION, "answer": 9}, QUESTION], list[str]()
    kept = read(tmp_path, rows, ASKS, skipped.append, skip_bad=True)
    assert [example.place for example in kept] == ["rows.jsonl, line 1", "rows.jsonl, line 3"]
    assert len(skipped) == 1
    assert skipped[0].startswith("rows.jsonl, line 2: column 'answer'")


def test_rows_that_are_all_bad_are_an_error_even_where_bad_ones_are_skipped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1: column 'answer'"):
        read(tmp_path, [{**QUESTION, "answer": 9}], skip_bad=True)


def test_a_limit_draws_rows_of_each_source_by_the_seed(tmp_path: Path) -> None:
    rows = [{**QUESTION, "question": f"q{number}"} for number in range(40)]
    drawn = [read(tmp_path, rows, limit=10, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(each) for each in drawn] == [10, 10, 10]
    numbers = [int(example.inputs["question"][1:]) for example in drawn[0]]
    assert numbers == sorted(set(numbers))
    (tmp_path / "more.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    spec = DataSpec(source=("rows.jsonl", "more.jsonl"), limit=10)
    assert len(read_examples(spec.sources, spec, ASKS, tmp_path)) == 20


def test_paths_start_at_the_recipe_at_home_or_at_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    read(tmp_path, [QUESTION])
    for source, folder in (("~/rows.jsonl", Path("/")), (str(tmp_path / "rows.jsonl"), Path("/"))):
        spec = DataSpec(source=source)
        assert len(read_examples(spec.sources, spec, ASKS, folder)) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.jsonl", "No such file"),
        ("~nobody-of-that-name/rows.jsonl", "'~nobody-of-that-name/rows.jsonl' can't be used"),
        ("a\0b.jsonl", "can't be read from .*null byte"),
        ("n" * 5000, "can't be used .*too long"),
        (".", "Is a directory"),
    ],
)
def test_a_source_that_is_no_file_to_read_is_named(tmp_path: Path, source: str, message: str) -> None:
    spec = DataSpec(source=source)
    with pytest.raises(InputError, match=message):
        read_examples(spec.sources, spec, ASKS, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'rows.jsonl' has no rows"),
        ('{"question": "q"}\n{', "rows.jsonl, line 2: this is not JSON"),
        ('{"question": ' + "1" * 5000 + "}", "rows.jsonl, line 1: this is not JSON"),
        ('["question"]', "rows.jsonl, line 1: a row is a mapping"),
    ],
)
def test_a_file_that_holds_no_rows_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    spec = DataSpec(source="rows.jsonl")
    with pytest.raises(InputError, match=message):
        read_examples(spec.sources, spec, ASKS, tmp_path)


def fake_hub(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    def load_dataset(name: str, config: str | None, split: str) -> list[dict[str, Any]]:
        asked.append(split)
        if name == "far/away":
            raise ConnectionError("Couldn't reach 'far/away' on the Hub")
        return [QUESTION]

    monkeypatch.setitem(__import__("sys").modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_a_data_set_of_the_hub_is_learnt_from_its_training_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    fake_hub(monkeypatch, asked)
    spec = DataSpec(source=("owner/name", "owner/name@validation"))
    assert len(read_examples(spec.sources, spec, ASKS, tmp_path)) == 2
    assert asked == ["train", "validation"]


def test_a_hub_out_of_reach_is_told_apart_from_a_name_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub(monkeypatch, [])
    spec = DataSpec(source="far/away")
    with pytest.raises(InputError, match=r"the hub can't be reached .*write the rows to a \.jsonl file"):
        read_examples(spec.sources, spec, ASKS, tmp_path)


def test_without_the_library_the_hub_is_a_matter_of_installing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    spec = DataSpec(source="owner/name")
    with pytest.raises(ConfigError, match=r"pip install 'cachegraph\[eval\]'"):
        read_examples(spec.sources, spec, ASKS, tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"source": ()}, {"source": ""}, {"dev": ()}, {"dev": 0.0}, {"dev": 1}, {"dev": 1.5}, {"limit": 0}]
)
def test_a_spec_that_can_give_no_rows_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DataSpec.model_validate({"source": "a.jsonl", **wrong})


@given(groups=st.lists(st.integers(0, 12), min_size=2, max_size=60), part=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_no_text_is_in_both_parts_and_every_row_is_in_one(groups: list[int], part: float, seed: int) -> None:
    if len(set(groups)) < 2:
        groups[0] = 99
    rows = list(range(len(groups)))
    train, dev = split_dev(rows, groups, part, seed)
    assert sorted(train + dev) == rows
    least = min(2, len(set(groups)) // 2)
    assert min(len({groups[row] for row in rows}) for rows in (train, dev)) >= least
    assert not {groups[row] for row in train} & {groups[row] for row in dev}
    assert split_dev(rows, groups, part, seed) == (train, dev)


def test_one_text_alone_cannot_be_held_back() -> None:
    with pytest.raises(InputError, match="give dev rows of their own"):
        split_dev([1, 2], ["a", "a"], 0.5, 0)
