from typing import Any

import pytest

from cachegraph.agents.base import ChoiceScore
from cachegraph.errors import InputError
from cachegraph.evaluation.metrics import METRICS, pick_metrics, words
from cachegraph.graph.data.examples import Example

QUESTION = Example(index=3, id="q", inputs={}, choices=("a red hat", "no"), answer=0, references=("a red hat",))
OPEN = Example(index=0, id="o", inputs={}, references=("The Eiffel Tower", "Tour Eiffel"))
SCORES = [ChoiceScore(-6.0, 3, 9), ChoiceScore(-4.0, 1, 2)]


def value(name: str, example: Example, reply: str = "", scores: Any = ()) -> float:
    return METRICS[name](example, reply, scores)


def test_accuracy_takes_the_sum_and_its_sister_divides_by_characters() -> None:
    assert value("accuracy", QUESTION, scores=SCORES) == 0.0  # -4 beats -6
    assert value("accuracy_per_character", QUESTION, scores=SCORES) == 1.0  # -6/9 beats -4/2
    assert value("answer_logprob", QUESTION, scores=SCORES) == -6.0


def test_of_equally_likely_choices_the_first_is_taken() -> None:
    assert value("accuracy", QUESTION, scores=[ChoiceScore(-1.0, 1, 1)] * 2) == 1.0


def test_words_are_those_of_squad() -> None:
    assert words("The  Cat's, an «apple» — A dog!") == ["cat", "s", "apple", "dog"]


@pytest.mark.parametrize(
    ("reply", "exact", "contains", "f1"),
    [
        ("the eiffel tower!", 1.0, 1.0, 1.0),
        ("It is the Eiffel Tower.", 0.0, 1.0, 2 * 2 / (4 + 2)),
        ("Tour Eiffel", 1.0, 1.0, 1.0),
        ("Towering Eiffels", 0.0, 0.0, 0.0),
        ("", 0.0, 0.0, 0.0),
        ("the", 0.0, 0.0, 0.0),
    ],
)
def test_replies_are_held_to_their_best_reference(reply: str, exact: float, contains: float, f1: float) -> None:
    assert value("exact_match", OPEN, reply) == exact
    assert value("contains", OPEN, reply) == contains
    assert value("f1", OPEN, reply) == pytest.approx(f1)


def test_a_word_inside_another_word_is_not_contained() -> None:
    assert value("contains", Example(index=0, id="", inputs={}, references=("no",)), "nothing") == 0.0


def test_defaults_fit_the_data() -> None:
    assert [metric.name for metric in pick_metrics(None, QUESTION)][0] == "accuracy"
    assert [metric.name for metric in pick_metrics(None, OPEN)] == ["exact_match", "contains", "f1"]


def length(example: Example, reply: str) -> float:
    return len(reply) - example.index


def test_a_function_or_its_name_is_a_metric() -> None:
    by_function, by_name = pick_metrics([length, "os.path:basename"], QUESTION)
    assert (by_function.name, by_function.unit) == ("length", "")
    assert by_function(QUESTION, "four", ()) == 1.0
    assert by_name.name == "os.path:basename"


@pytest.mark.parametrize(
    ("wanted", "example", "message"),
    [
        (["acuracy"], QUESTION, "no metric 'acuracy'; did you mean 'accuracy'"),
        (["accuracy"], OPEN, "'accuracy' needs choices"),
        (None, Example(index=0, id="", inputs={}), "neither choices nor references"),
        (["f1"], Example(index=0, id="", inputs={}), "'f1' needs references"),
        (["f1", "f1"], OPEN, "not all different"),
        (["nowhere:f"], OPEN, "'nowhere:f' can't be imported"),
        (["math:pi"], OPEN, "'math:pi' is not a function"),
    ],
)
def test_a_metric_that_can_not_be_is_an_input_error(wanted: Any, example: Example, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pick_metrics(wanted, example)


@pytest.mark.parametrize("given", [None, "many", float("nan")])
def test_a_users_metric_that_gives_no_number_is_named_with_its_row(given: Any) -> None:
    (metric,) = pick_metrics([lambda example, reply: given], OPEN)
    with pytest.raises(InputError, match="<lambda>.*row 0"):
        metric(OPEN, "", ())
