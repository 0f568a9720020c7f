"""What a comparison warns of. That it asks the fusers that it uses is tested where one is trained."""

from typing import Any

import pytest

from cachegraph.channels.fusers.files.card import Card, Geometry, ModelEnd
from cachegraph.channels.fusers.files.trained_rows import trained_rows
from cachegraph.evaluation.comparison import Difference, MetricInfo, VariantRow
from cachegraph.evaluation.warnings import doubts
from cachegraph.graph.data.examples import Example

METRICS = [MetricInfo(name="accuracy", unit="points"), MetricInfo(name="contains", unit="points")]


def examples(count: int) -> list[Example]:
    return [Example(index=n, id=str(n), inputs={"question": f"What is the square of {n}?"}) for n in range(count)]


def card(**parts: Any) -> Card:
    end = ModelEnd(name="m", geometry=Geometry(2, 1, 8))
    return Card(receiver=end, sharer=end, layer_map=((0, 0),), **parts)


def rows(count: int, groups: int | None = None) -> list[VariantRow]:
    return [VariantRow(name="cache", description="", examples=count, groups=groups)]


def differ(metric: str, value: float, shown: bool, variant: str = "cache", baseline: str = "text") -> Difference:
    low, high = (value - 0.1, value + 0.1) if shown else (value - 2, value + 2)
    ends = {"low": low, "high": high, "p": 0.01 if shown else 0.5}
    return Difference(variant=variant, baseline=baseline, metric=metric, value=value, test="paired bootstrap", **ends)


def test_rows_that_the_fuser_has_learnt_are_counted() -> None:
    asked = examples(100)
    known = trained_rows([each.inputs for each in asked[:7]] + [{"question": "Something else?"}])
    (warning,) = doubts(rows(100), [], METRICS, asked, {"mine": card(trained_rows=known)})
    assert warning.startswith(
        "7 of 100 evaluated rows, or the texts they are about, were in the training data of the fuser"
    )
    assert "'mine'" in warning
    assert doubts(rows(100), [], METRICS, examples(100), {"mine": card()}) == []


def test_too_few_counts_with_the_correction_for_many_comparisons() -> None:
    six = [differ("accuracy", 0.0, False).model_copy(update={"comparisons": 6})]
    assert "even if all of them differed the same way" in doubts(rows(6), six, METRICS, examples(6), {})[0]
    assert (
        "with 24 examples intervals are rough, and no difference below 34 points"
        in doubts(rows(24), six, METRICS, examples(24), {})[0]
    )


@pytest.mark.parametrize(
    ("count", "groups", "says"),
    [
        (5, None, "5 examples are too few to mean anything"),
        (6, None, "with 6 examples intervals are rough, and no difference below 100 points can be shown"),
        (20, None, "with 20 examples intervals are rough, and no difference below 30 points can be shown"),
        (200, 4, "4 groups of examples are too few to mean anything"),
        (30, None, None),
        (0, None, None),
    ],
)
def test_a_set_that_is_too_small_says_what_it_can_show(count: int, groups: int | None, says: str | None) -> None:
    found = doubts(rows(count, groups), [], METRICS, examples(count), {})
    assert [warning.startswith(says) for warning in found] == [True] if says else found == []


def test_a_fuser_that_was_chosen_by_a_handful_of_rows_is_named() -> None:
    (warning,) = doubts(rows(100), [], METRICS, examples(100), {"mine": card(metrics={"dev_rows": 4.0})})
    assert warning.startswith("the fuser 'mine' was chosen by 4 dev rows")
    assert doubts(rows(100), [], METRICS, examples(100), {"mine": card(metrics={"dev_rows": 160.0})}) == []


def test_a_second_metric_that_contradicts_the_verdict_is_said() -> None:
    unseen = [differ("accuracy", 0.0, False), differ("contains", -0.75, True)]
    (warning,) = doubts(rows(100), unseen, METRICS, examples(100), {})
    assert warning == (
        "the metrics disagree: by contains, text beats cache by 75.0 points (65.0 to 85.0); by accuracy, on which the "
        "verdict rests, no difference shown between cache and text (+0.0 points, -200.0 to +200.0)"
    )
    against = [differ("accuracy", 0.5, True), differ("contains", -0.5, True)]
    assert len(doubts(rows(100), against, METRICS, examples(100), {})) == 1
    agreed = [differ("accuracy", 0.5, True), differ("contains", 0.3, True), differ("contains", 0.9, True, "alone")]
    assert doubts(rows(100), agreed, METRICS, examples(100), {}) == []
