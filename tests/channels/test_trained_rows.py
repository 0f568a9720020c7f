"""What a fuser's card keeps of the rows it was trained on, and what can be found by it."""

import json

import pytest
from pydantic import ValidationError

from cachegraph.channels.fusers.files.trained_rows import KEPT, LARGEST, Seen, TrainedRows, trained_rows

QUESTIONS = [{"question": f"What is the square of {number}, as a word?"} for number in range(500)]
OTHERS = [{"question": f"What is the cube of {number}, as a word?"} for number in range(500)]
STORIES = [
    {"story": f"Ann and {name} went to the sea and found {number} shells.", "question": "How many shells?"}
    for number, name in enumerate(["Bob", "Eve", "Kim", "Leo"])
]


def filtered(rows: list[dict[str, str]]) -> TrainedRows:
    found = trained_rows(rows)
    assert found is not None
    return TrainedRows.model_validate_json(found.model_dump_json())


def test_rows_of_the_trainings_before_are_found_too() -> None:
    first, second, third = filtered(STORIES[:2]), filtered(STORIES[2:3]), filtered(QUESTIONS)
    rows = TrainedRows.model_validate_json(third.after(second.after(first)).model_dump_json())
    assert rows.look_up(STORIES) == Seen(3, 4)
    assert rows.look_up(QUESTIONS) == Seen(500, 500)
    assert [each.rows for each in (rows, *rows.earlier)] == [500, 1, 2]


def test_every_row_of_the_training_is_found_and_no_other() -> None:
    rows = filtered(QUESTIONS)
    assert rows.look_up(QUESTIONS) == Seen(500, 500)
    assert rows.look_up(OTHERS) == Seen(0, 500)
    assert rows.look_up([*OTHERS[:9], QUESTIONS[3]]) == Seen(1, 10)
    assert rows.rows == 500


@pytest.mark.parametrize(
    "text",
    [
        "what is the SQUARE of 7 as a word",
        "  What is\nthe square of 7 — as a word?! ",
        "What is the square of ７, as a word?",
    ],
)
def test_copies_that_differ_in_case_punctuation_and_space_are_the_same_row(text: str) -> None:
    assert filtered(QUESTIONS).look_up([{"question": text}]) == Seen(1, 1)


def test_the_same_question_is_found_under_other_names_and_beside_other_inputs() -> None:
    rows = filtered(QUESTIONS)
    asked = [{"prompt": each["question"], "hint": f"Think of all you know about numbers, number {at}, and of words."}
             for at, each in enumerate(QUESTIONS[:5])]  # fmt: skip
    assert rows.look_up(asked) == Seen(5, 5)


def test_another_question_about_a_story_of_the_training_is_found() -> None:
    rows = filtered(STORIES)
    assert rows.look_up([{"story": STORIES[0]["story"], "question": "Who went?"}]) == Seen(1, 1)
    new = [{"story": f"Nobody went to the sea on day {day}.", "question": "How many shells?"} for day in range(4)]
    assert rows.look_up(new) == Seen(0, 4)


def test_an_instruction_that_all_rows_share_tells_nothing() -> None:
    task = "Answer the question below in one short sentence, and say nothing else, whatever you are asked."
    rows = filtered([{"task": task, **each} for each in QUESTIONS])
    assert rows.look_up([{"task": task, **each} for each in OTHERS]) == Seen(0, 500)
    assert rows.look_up([{"task": task, **each} for each in QUESTIONS[:4]]) == Seen(4, 4)
    assert rows.look_up([{"task": task, **OTHERS[0]}]).seen == 0


def test_of_large_data_a_part_stands_for_all_and_the_card_stays_small() -> None:
    many = [{"question": f"question {number}"} for number in range(3 * KEPT)]
    rows = filtered(many)
    seen, checked = rows.look_up(many[:4000])
    assert (rows.part, seen) == (4, checked)
    assert 800 < checked < 1200
    assert rows.look_up([{"question": f"other {number}"} for number in range(4000)]).seen <= 2
    assert len(rows.filter) <= LARGEST * 4 // 3 + 4


def test_values_that_are_no_texts_and_rows_without_any_are_no_error() -> None:
    rows = filtered([{"question": "why?", "facts": ["a", {"b": 1}]}, {"question": "", "facts": None}])  # type: ignore[dict-item]
    assert rows.look_up([{"facts": ["a", {"b": 1}], "question": "Why?"}]).seen == 1
    assert trained_rows([{"question": " ?!"}]) is None
    assert trained_rows([]) is None
    assert rows.look_up([]) == Seen(0, 0)


@pytest.mark.parametrize("filter_", ["", "no base64!", "A" * (LARGEST * 2)])
def test_a_damaged_filter_is_refused(filter_: str) -> None:
    with pytest.raises(ValidationError):
        TrainedRows.model_validate_json(json.dumps({"rows": 3, "filter": filter_}))
