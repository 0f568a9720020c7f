from typing import Any

import pytest

from cachegraph.evaluation.comparison import Difference, EdgeSummary, MetricInfo, VariantRow
from cachegraph.evaluation.verdict import against, verdicts

POINTS = MetricInfo(name="accuracy", unit="points")


def row(name: str, share: float | None = 1.0, **more: Any) -> VariantRow:
    asked = "text" if share is None else "cache"
    used = {"text": 100} if share is None else {"cache": round(100 * share), "text": round(100 - 100 * share)}
    reasons = {"no fuser": 60, "too long": 40} if share is not None and share < 1 else {}
    edge = EdgeSummary(
        sender="a",
        receiver="b",
        asked=asked,
        used=used,
        fallbacks=reasons,
        bytes=0,
        positions_fused=0,
        positions_grafted=0,
    )
    return VariantRow(name=name, description="", examples=200, cache_share=share, edges=[edge], **more)


def diff(variant: str, baseline: str, value: float, shown: bool | None = None) -> Difference:
    shown = value != 0 if shown is None else shown
    wide = abs(value) * (0.5 if shown else 2) + 0.001
    return Difference(
        variant=variant, baseline=baseline, metric="accuracy", value=value, low=value - wide, high=value + wide,
        p=0.01 if shown else 0.4, test="McNemar, exact",
    )  # fmt: skip


def say(*differences: Difference, rows: list[VariantRow] | None = None) -> str:
    usual = [row("text", None), row("cache"), row("alone", None), row("mismatched")]
    return "\n".join(verdicts(rows or usual, differences, POINTS))


def test_a_difference_that_is_shown_says_who_wins_by_how_much() -> None:
    won = Difference(
        variant="cache", baseline="text", metric="accuracy", value=0.031, low=0.012, high=0.05, p=0.001,
        test="McNemar, exact",
    )  # fmt: skip
    assert against(won, POINTS) == "cache beats text by 3.1 points (1.2 to 5.0)"
    lost = won.model_copy(update={"value": -0.031, "low": -0.05, "high": -0.012})
    assert against(lost, POINTS) == "text beats cache by 3.1 points (1.2 to 5.0)"
    nats = MetricInfo(name="answer_logprob", unit="nats")
    assert against(won, nats) == "cache beats text by 0.031 nats (0.012 to 0.050)"
    assert against(won, MetricInfo(name="length", unit="")) == "cache beats text by 0.031 in length (0.012 to 0.050)"


@pytest.mark.parametrize("change", [{"p": 0.06}, {"low": -0.001}, {"p": 0.05}, {"low": 0.0}])
def test_a_difference_is_shown_only_where_interval_and_test_agree(change: dict[str, float]) -> None:
    won = Difference(
        variant="cache", baseline="text", metric="accuracy", value=0.031, low=0.012, high=0.05, p=0.001,
        test="McNemar, exact",
    )  # fmt: skip
    said = against(won.model_copy(update=change), POINTS)
    assert said.startswith("no difference shown between cache and text (+3.1 points, ")


def test_a_right_cache_that_beats_none_and_a_wrong_one_is_used() -> None:
    said = say(diff("cache", "text", 0.0), diff("cache", "alone", 0.2), diff("cache", "mismatched", 0.15))
    assert "no difference shown between cache and text" in said
    assert "cache beats alone by 20.0 points" in said
    assert "cache beats mismatched by 15.0 points" in said
    assert said.endswith("what the cache carries is used")


def test_a_gain_that_a_wrong_cache_shares_is_not_communication() -> None:
    said = say(
        diff("cache", "text", 0.1),
        diff("cache", "alone", 0.2),
        diff("cache", "mismatched", 0.01, shown=False),
        diff("mismatched", "alone", 0.19),
    )
    assert "cache beats alone, but so does a mismatched cache: this is not communication" in said
    assert "is used" not in said


def test_a_gain_without_a_difference_from_a_wrong_cache_shows_nothing_either() -> None:
    said = say(
        diff("cache", "alone", 0.2),
        diff("cache", "mismatched", 0.05, shown=False),
        diff("mismatched", "alone", 0.15, shown=False),
    )
    assert said.endswith("no communication shown")
    assert "but no difference shown between cache and mismatched" in said


def test_no_gain_over_none_is_said_with_what_beats_a_wrong_cache() -> None:
    said = say(diff("cache", "alone", 0.01, shown=False), diff("cache", "mismatched", 0.2))
    assert "no communication shown; cache beats mismatched" in said
    assert say(diff("cache", "alone", 0.01, shown=False), diff("cache", "mismatched", 0.0)).endswith(
        "communication shown"
    )


def test_a_cache_that_is_worse_than_none_does_harm() -> None:
    assert "alone beats cache by 10.0 points" in say(diff("cache", "alone", -0.1), diff("cache", "mismatched", 0.1))
    assert "does harm" in say(diff("cache", "alone", -0.1), diff("cache", "mismatched", 0.1))


def test_without_the_controls_nothing_is_said_about_communication() -> None:
    rows = [row("text", None), row("cache")]
    said = say(diff("cache", "text", 0.1), rows=rows)
    assert "without alone and mismatched nothing is said about communication" in said


def test_a_cache_that_was_never_used_gets_no_verdict() -> None:
    rows = [row("text", None), row("cache", 0.0), row("alone", None)]
    said = say(diff("cache", "text", 0.1), diff("cache", "alone", 0.1), rows=rows)
    assert "cache: the cache was never used; the edges fell back to text: no fuser (and 1 other reasons)" in said
    assert "beats" not in said


def test_a_cache_that_was_used_at_times_says_how_often() -> None:
    rows = [row("text", None), row("cache", 0.25), row("alone", None), row("mismatched", 0.25)]
    said = say(diff("cache", "alone", 0.1), diff("cache", "mismatched", 0.1), rows=rows)
    assert "the cache was used on 25% of the deliveries that asked for one; on the others, the edges fell back" in said


def test_every_cached_variant_is_held_to_its_own_control() -> None:
    rows = [row("both"), row("alone", None), row("mismatched"), row("mismatched:both")]
    said = say(diff("both", "alone", 0.1), diff("both", "mismatched", 0.1), rows=rows)
    assert "without mismatched:both" in said
    said = say(diff("both", "alone", 0.1), diff("both", "mismatched:both", 0.1), rows=rows)
    assert said.endswith("what the cache carries is used")


def test_variants_that_could_not_run_and_failures_are_told() -> None:
    rows = [row("text", None, failed=3, errors={"too long": 3}), row("identical", why_not="there is no fuser")]
    rows[0].examples = 12
    said = say(rows=rows)
    assert "no variant with cache edges ran" in said
    assert "identical could not run: there is no fuser" in said
    assert "3 examples failed in text and are left out everywhere (too long)" in said


def test_where_no_example_finished_everywhere_there_is_nothing_to_compare() -> None:
    rows = [row("text", None), row("cache")]
    for each in rows:
        each.examples = 0
    assert "no example finished in every variant" in say(rows=rows)
