"""Numbers for people: one formatter of bytes, one of counts, one of suggestions."""

import pytest

from cachegraph.common.did_you_mean import did_you_mean, near_or_known, suggest
from cachegraph.common.human import format_bytes, format_count, format_duration


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (271_000_000, "271.0 MB"), (1.5e9, "1.50 GB"), (2e12, "2000.00 GB")],
)
def test_bytes_stand_in_the_largest_unit_that_is_not_larger(number: float, text: str) -> None:
    assert format_bytes(number) == text


@pytest.mark.parametrize(("number", "text"), [(999_999, "999,999"), (134_515_008, "134.5 M"), (7e9, "7.0 B")])
def test_counts_are_exact_below_a_million(number: int, text: str) -> None:
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7500, "2 h 5 min")]
)
def test_durations_have_the_unit_that_one_would_say(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_hint_names_the_nearest_name_or_what_there_is() -> None:
    assert did_you_mean("promt", ["prompt", "system"]) == "did you mean 'prompt'?"
    assert did_you_mean("Smol", ["gemma-3-270m", "smollm2-135m-instruct"]) == "did you mean 'smollm2-135m-instruct'?"
    assert did_you_mean("mol", ["smollm2-135m-instruct"]) == ""
    assert did_you_mean("xyz", ["prompt"], "see the docs") == "see the docs"
    assert near_or_known("xyz", ["a", "b"]) == "known are 'a', 'b'"
    assert near_or_known("xyz", [f"name{i}" for i in range(9)]) == ""
    assert suggest("xyz", ["a", "b"]) == "; there is 'a', 'b'"
    assert suggest("xyz", []) == "; there are none"
    assert suggest("promt", ["prompt"]) == "; did you mean 'prompt'?"


def test_a_hint_for_a_very_long_name_takes_no_time() -> None:
    assert did_you_mean("a" * 1_000_000, ["b" * 1_000_000] * 10_000) == ""
