"""Categories, effect sizes, correction, agreement and flat rows of a comparison."""

import csv
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from cachegraph import Comparison, compare
from cachegraph.agents.base import ChoiceScore
from cachegraph.errors import ConfigError, InputError
from cachegraph.evaluation.agreement import agreements, kl_divergence
from cachegraph.evaluation.comparison import EdgeCurve, VariantRow
from cachegraph.evaluation.effects import detectable
from cachegraph.evaluation.records import ExampleRecord
from cachegraph.evaluation.report import write_report
from cachegraph.graph.data.examples import Example

from .conftest import Answerer, rows, story_graph

pytestmark = pytest.mark.usefixtures("caches_travel")


def kinds(count: int = 40) -> list[dict[str, Any]]:
    """Questions of two kinds; the last ten are hard."""
    return [{**row, "kind": "hard" if number >= count - 10 else "easy"} for number, row in enumerate(rows(count))]


def hard(first: int) -> Answerer:
    """Knows only what comes before this story, and hears it over caches alone."""
    return Answerer("answerer", knows=lambda heard, story: heard == story and int(story.split()[1]) < first)


def test_every_category_has_results_of_its_own() -> None:
    found = compare(story_graph(hard(30)), kinds(), variants=["text", "cache", "alone", "mismatched"], by="kind")
    assert found.by is not None
    assert found.by.column == "kind"
    easy, difficult = found.by.categories
    assert [(each.name, each.examples) for each in (easy, difficult)] == [("easy", 30), ("hard", 10)]
    assert easy.quality["cache"]["accuracy"].value == 1.0
    assert difficult.quality["cache"]["accuracy"].value == 0.0
    assert difficult.quality["cache"]["accuracy"].high > 0.2  # Wilson's interval of 0 of 10
    over = {(each.variant, each.baseline): each for each in easy.differences if each.metric == "accuracy"}
    assert over["cache", "mismatched"].shown
    assert {each.comparisons for each in found.differences} == {6}
    assert {each.comparisons for each in easy.differences} == {12}  # of both categories
    assert Comparison.from_json(found.to_json()) == found


def test_categories_change_neither_results_nor_their_file(tmp_path: Path) -> None:
    plain = compare(story_graph(), kinds(), variants=["cache", "alone"], out=tmp_path / "r.jsonl")
    answerer = Answerer("answerer")
    by = compare(story_graph(answerer), kinds(), variants=["cache", "alone"], out=tmp_path / "r.jsonl", by="kind")
    assert answerer.scored == 0  # all results are in the file
    assert by.differences == plain.differences
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize(
    ("change", "by", "message"),
    [
        ({}, "knid", r"row 1: there is no column 'knid' for the categories; did you mean 'kind'\?"),
        ({"kind": ["a"]}, "kind", "row 3: column 'kind' must hold a text, a number or true and false, not list"),
        ({}, "question", "column 'question' has 60 different values in 60 rows; choose a column with at most 50"),
    ],
)
def test_a_column_that_makes_no_categories_is_named_with_its_row(change: dict[str, Any], by: str, message: str) -> None:
    data = kinds(60)
    data[2] |= change
    with pytest.raises(InputError, match=message):
        compare(story_graph(), data, variants=["cache"], by=by)


def test_cells_with_nothing_to_see_are_one_category() -> None:
    blank = (None, "", "  ", "\u200b", float("nan"))
    data = [{**row, "kind": blank[number % len(blank)]} for number, row in enumerate(rows(10))]
    found = compare(story_graph(), data, variants=["cache", "alone"], by="kind")
    assert found.by is not None
    assert [category.name for category in found.by.categories] == ["(empty)"]


@pytest.mark.parametrize("blank", [None, "", " "])
def test_a_row_without_its_group_is_named(blank: str | None) -> None:
    data = kinds(8)
    data[2] |= {"kind": blank}
    with pytest.raises(InputError, match="column 'kind', the role 'group', is empty"):
        compare(story_graph(), data, variants=["cache"], columns={"group": "kind"})


def test_p_is_corrected_for_all_comparisons_and_a_pair_counts_once() -> None:
    few = {f"story {number}" for number in range(7)}  # 7 of 40: p is 0.0156 alone, and 0.0156 * 6 of six
    lucky = Answerer("answerer", knows=lambda heard, story: heard == story and story in few)
    two = compare(story_graph(lucky), rows(), variants=["cache", "alone"], metrics=["accuracy"])
    (alone,) = two.differences
    assert (alone.p, alone.p_corrected, alone.comparisons) == (2 / 2**7, 2 / 2**7, 1)
    assert alone.shown
    variants = ["text", "cache", "alone", "floor", "mismatched", "zero", "ceiling"]
    many = compare(story_graph(lucky), rows(), variants=variants, metrics=["accuracy"])
    again = many.difference("cache", "alone")
    assert again is not None
    assert again.comparisons == 9  # floor is alone and ceiling is text; zero has three baselines of its own
    assert again.p_corrected == pytest.approx(9 * 2 / 2**7)
    assert not again.shown
    back = many.difference("text", "mismatched"), many.difference("mismatched", "text")
    assert back[0] is not None
    assert back[1] is not None
    assert back[0].p_corrected == back[1].p_corrected


def test_effect_sizes_follow_the_kind_of_metric() -> None:
    found = compare(story_graph(hard(30)), kinds(), variants=["cache", "alone"])
    right, nats = found.difference("cache", "alone"), found.difference("cache", "alone", "answer_logprob")
    assert right is not None
    assert nats is not None
    assert right.cohens_h == pytest.approx(2 * math.asin(math.sqrt(0.75)))
    assert right.odds_ratio is not None
    assert right.odds_ratio.value == math.inf
    assert right.detectable == detectable(40, 0.75)
    assert (nats.cohens_h, nats.odds_ratio) == (None, None)
    assert nats.standardised == pytest.approx(3.0 / (4 * math.sqrt(0.75 * 0.25 * 40 / 39)))
    grouped = compare(story_graph(hard(30)), kinds(), variants=["cache", "alone"], columns={"group": "kind"})
    assert grouped.differences[0].odds_ratio is None  # its interval holds for independent examples only


def test_the_spread_over_seeds_is_that_of_what_was_repeated() -> None:
    even = Answerer("answerer", knows=lambda heard, story: bool(heard) and int(heard.split()[1]) % 3 == 0)
    found = compare(story_graph(even), rows(41), variants=["cache", "mismatched"], seeds=3)
    cache, mismatched = found.rows
    assert cache.repeats == {}  # nothing in it is random
    repeats = mismatched.repeats["accuracy"]
    assert list(repeats.values) == ["seed 0", "seed 1", "seed 2"]
    assert repeats.deviation == 0  # every cache is used once, whatever the seed


def scored(*logprobs: float) -> list[ChoiceScore]:
    return [ChoiceScore(each, 1, 1) for each in logprobs]


def test_the_divergence_has_the_known_values() -> None:
    half, tenth = scored(math.log(0.5), math.log(0.5)), scored(math.log(0.9), math.log(0.1))
    assert kl_divergence(half, tenth) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert kl_divergence(half, half) == 0
    shifted = scored(math.log(0.9) - 1000, math.log(0.1) - 1000)  # shares among the choices
    assert kl_divergence(tenth, shifted) == pytest.approx(0, abs=1e-9)


def test_agreement_counts_examples_that_both_have_scored() -> None:
    examples = [Example(index=index, id=str(index), inputs={}) for index in range(3)]

    def record(variant: str, index: int, *logprobs: float) -> ExampleRecord:
        return ExampleRecord(variant=variant, seed=0, index=index, scores=scored(*logprobs))

    records = {
        "text": [record("text", 0, -1, -2), record("text", 1, -1, -2), record("text", 2, -1, -math.inf)],
        "cache": [record("cache", 0, -1, -2), record("cache", 1, -2, -1), record("cache", 2, -1, -2)],
    }
    rows_ = [VariantRow(name=name, description="") for name in records]
    (found,) = agreements(rows_, records, examples, 0)
    assert (found.variant, found.baseline, found.examples) == ("cache", "text", 2)
    assert found.same_choice.value == 0.5
    share = math.exp(-1) / (math.exp(-1) + math.exp(-2))
    assert found.kl.value == pytest.approx((share - (1 - share)) / 2)


def test_flat_rows_hold_each_record_in_csv_and_in_pandas(tmp_path: Path) -> None:
    strange = [{**row, "kind": '=1+1\n"x",\x00' if number else "é"} for number, row in enumerate(rows(8))]
    found = compare(story_graph(), strange, variants=["text", "cache", "ceiling"], by="kind")
    found.to_csv(tmp_path / "c.csv")
    with (tmp_path / "c.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert len(read) == 16  # the ceiling shows the text's records
    assert read[0]["category"] == "é"
    assert read[1]["category"] == '=1+1\n"x",\x00'
    assert read[9] | {"seconds": ""} == {
        name: "" if value is None or name == "seconds" else str(value) for name, value in found.to_rows()[9].items()
    }
    loaded = Comparison.from_json(found.to_json())
    assert loaded.to_rows() == found.to_rows()
    frame = pytest.importorskip("pandas") and loaded.to_pandas()
    assert frame.groupby("variant")["accuracy"].mean().to_dict() == {"cache": 1.0, "text": 1.0}


def test_without_pandas_a_sentence_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compare(story_graph(), rows(4), variants=["cache"])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="to_pandas needs pandas: pip install pandas; or use to_csv"):
        found.to_pandas()


def test_a_metric_of_ones_own_with_the_name_of_a_column_has_one_of_its_own() -> None:
    def reply(example: Example, text: str) -> float:
        return len(text)

    found = compare(story_graph(), rows(4), variants=["cache"], metrics=[reply])
    assert found.to_rows()[0]["metric.reply"] == 5
    assert found.to_rows()[0]["reply"] == "right"


def test_the_report_has_categories_edges_and_effects(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    hostile = [{**row, "kind": "<b>" if number % 2 else "\u202e"} for number, row in enumerate(rows(8))]
    found = compare(story_graph(), hostile, variants=["text", "cache"], by="kind", edges=True)
    lengths = [16, 64, 4096]
    found.costs = [
        EdgeCurve(
            form="graft",
            edge="a → <b>",
            receivers=2,
            tokens=lengths,
            cache=[0.1, 0.2, 2],
            text=[0.1, 0.3, 4],
            longest_measured=1024,
        )  # fmt: skip
    ]
    write_report(found, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for caption in (
        "Quality by kind",
        "Each edge alone",
        "Agreement with text",
        "p, Holm",
        "bytes a position",
        "Cost of a",
    ):
        assert caption in page
    assert "<b>" not in page
