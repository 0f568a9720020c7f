"""Known values: of Holm's paper, Cohen's book and the tails of the binomial; and slower routes to the same numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachegraph.evaluation.effects import (
    clopper_pearson,
    cohens_h,
    detectable,
    detectable_mean,
    holm,
    matched_odds_ratio,
    standardised,
)
from cachegraph.evaluation.stats import mcnemar


def binomial(count: int, trials: int, share: float) -> float:
    return math.comb(trials, count) * share**count * (1 - share) ** (trials - count)


def slow_power(examples: int, discordant: float, difference: float, alpha: float = 0.05) -> float:
    """The power of McNemar's exact test, by all tables that may come out."""
    first = (discordant + difference) / 2 / discordant
    power = 0.0
    for number in range(examples + 1):
        chance = binomial(number, examples, discordant)
        if chance > 1e-9:
            wins = (k for k in range(number + 1) if mcnemar(k, number - k) < alpha)
            power += chance * sum(binomial(k, number, first) for k in wins)
    return power


def test_holm_has_the_known_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(..., "holm")
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(values: list[float]) -> None:
    """Reject the smallest p while it is below alpha over the number of those that are left."""
    rejected, left = set(), sorted(range(len(values)), key=values.__getitem__)
    while left and values[left[0]] < 0.05 / len(left):
        rejected.add(left.pop(0))
    near = any(math.isclose(p * k, 0.05) for p in values for k in range(1, len(values) + 1))
    assert near or {place for place, p in enumerate(holm(values)) if p < 0.05} == rejected


def test_cohens_h_has_the_known_values() -> None:
    assert cohens_h(0.5, 0.25) == pytest.approx(math.pi / 6)
    assert cohens_h(1.0, 0.0) == pytest.approx(math.pi)
    assert cohens_h(0.65, 0.45) == pytest.approx(1.875 - 1.471, abs=1.1e-3)  # Cohen's table of phi
    assert cohens_h(0.3, 0.7) == -cohens_h(0.7, 0.3)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.308497), (10, 10, 0.691503, 1.0), (3, 10, 0.066740, 0.652453), (7, 1000, 0.002819, 0.014369),
     (450, 1000, 0.418852, 0.481443)],
)  # fmt: skip
def test_the_exact_interval_has_the_known_values(successes: int, trials: int, low: float, high: float) -> None:
    assert clopper_pearson(successes, trials) == pytest.approx((low, high), abs=1e-6)  # scipy.stats.binomtest


def test_the_odds_ratio_of_pairs_compares_those_that_differ() -> None:
    ratio = matched_odds_ratio(12, 5)
    assert ratio is not None
    assert ratio.value == pytest.approx(2.4)
    share = ratio.low / (1 + ratio.low)
    assert sum(binomial(k, 17, share) for k in range(12, 18)) == pytest.approx(0.025)
    assert ratio.low < 1 < ratio.high  # as p is not below 0.05
    assert mcnemar(12, 5) > 0.05
    alone = matched_odds_ratio(8, 0)
    assert alone is not None
    assert (alone.value, alone.high) == (math.inf, math.inf)
    assert alone.low > 1
    assert matched_odds_ratio(0, 0) is None


@pytest.mark.parametrize("examples", [40, 100, 200])
@pytest.mark.parametrize("discordant", [0.0, 0.3, 0.6])
def test_the_detectable_difference_is_found_in_about_four_of_five_samples(examples: int, discordant: float) -> None:
    least = detectable(examples, discordant)
    assert least is not None
    assert 0.74 < slow_power(examples, max(discordant, least), least) < 0.82
    assert slow_power(examples, max(discordant, least), 0.8 * least) < 0.68


def test_a_sterner_level_and_fewer_examples_find_larger_differences_only() -> None:
    sizes = [detectable(200, 0.3), detectable(200, 0.3, alpha=0.05 / 6), detectable(100, 0.3, alpha=0.05 / 6)]
    assert sizes == sorted(sizes, key=lambda size: size or 0.0)
    assert detectable(5, 0.5) is None  # even 5 of 5 have p = 0.0625
    assert detectable(6, 0.5) == 1.0
    assert detectable_mean(0.01) == pytest.approx(0.01 * (1.959964 + 0.841621))
    assert detectable_mean(0.0) is None


def test_the_standardised_difference_is_in_units_of_its_spread() -> None:
    assert standardised(np.array([1.0, 2.0, 3.0])) == 2.0
    assert standardised(np.array([1.0, 1.0])) is None
    assert standardised(np.array([1.0])) is None
