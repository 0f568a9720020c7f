import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachegraph.evaluation.stats import bootstrap_means, interval, mcnemar, two_sided, unanimous, wilson


def slow_mcnemar(b: int, c: int) -> float:
    """The two-sided binomial test by adding up every outcome that is no likelier than the one seen."""
    n = b + c
    chances = [Fraction(math.comb(n, k), 2**n) for k in range(n + 1)]
    return float(min(Fraction(1), sum((chance for chance in chances if chance <= chances[b]), Fraction(0))))


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    assert mcnemar(b, c) == pytest.approx(slow_mcnemar(b, c), rel=1e-12)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_mcnemar_has_the_known_values() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 6) == 2 / 64
    assert mcnemar(1, 9) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 5000) == 0.0  # too small for a float, and no overflow
    assert 0 < mcnemar(400, 600) < 1e-8


def test_resampled_means_are_those_of_drawing_examples_again() -> None:
    columns = np.random.default_rng(5).normal(size=(40, 2))
    means = bootstrap_means(columns, seed=1, resamples=20_000)
    draws = np.random.default_rng(2).integers(0, 40, size=(20_000, 40))  # the slow way: drawn one by one
    slow = columns[draws].mean(axis=1)
    assert np.allclose(
        np.quantile(means, [0.025, 0.5, 0.975], axis=0), np.quantile(slow, [0.025, 0.5, 0.975], axis=0), atol=0.02
    )
    assert np.allclose(np.cov(means.T), np.cov(slow.T), atol=0.002)


def test_all_columns_see_the_same_draws() -> None:
    column = np.random.default_rng(5).normal(size=50)
    means = bootstrap_means(np.stack([column, column, column - column], axis=1), seed=3)
    assert np.allclose(means[:, 0], means[:, 1])
    assert not means[:, 2].any()


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    columns = np.random.default_rng(5).normal(size=(30, 3))
    assert np.array_equal(bootstrap_means(columns, 7), bootstrap_means(columns, 7))
    assert not np.array_equal(bootstrap_means(columns, 7), bootstrap_means(columns, 8))


def test_the_interval_is_that_of_the_binomial_where_that_is_known() -> None:
    rights = np.array([1.0] * 60 + [0.0] * 40)[:, None]
    low, high = interval(bootstrap_means(rights, 0)[:, 0])
    assert low == pytest.approx(0.50, abs=0.011)
    assert high == pytest.approx(0.69, abs=0.011)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    samples = generator.normal(size=(60, 200))  # 200 experiments of 60 examples whose true mean is 0
    means = bootstrap_means(samples, 0, resamples=1000)
    ends = [interval(means[:, each]) for each in range(200)]
    assert 0.90 <= np.mean([low <= 0 <= high for low, high in ends]) <= 0.98


def test_two_sided_p_is_small_only_where_zero_is_rare() -> None:
    assert two_sided(np.full(9999, 1.0)) == 2 / 10_000
    assert two_sided(np.zeros(100)) == 1.0
    assert two_sided(np.linspace(-1, 1, 1001)) == pytest.approx(1.0)
    assert two_sided(np.r_[np.full(975, 1.0), np.full(25, -1.0)]) == pytest.approx(2 * 26 / 1001)


def test_groups_are_drawn_whole() -> None:
    columns = np.random.default_rng(5).normal(size=(30, 2))
    groups = [f"story {place % 7}" for place in range(30)]
    means = bootstrap_means(columns, seed=1, resamples=20_000, groups=groups)
    members = [[place for place, group in enumerate(groups) if group == f"story {number}"] for number in range(7)]
    generator = np.random.default_rng(2)
    slow = np.array(  # the slow way: stories drawn one by one, and all their questions with them
        [
            columns[[place for story in generator.integers(0, 7, size=7) for place in members[story]]].mean(axis=0)
            for _ in range(20_000)
        ]
    )
    assert np.allclose(
        np.quantile(means, [0.025, 0.5, 0.975], axis=0), np.quantile(slow, [0.025, 0.5, 0.975], axis=0), atol=0.02
    )


def test_groups_of_one_are_examples() -> None:
    columns = np.random.default_rng(5).normal(size=(30, 2))
    assert np.array_equal(bootstrap_means(columns, 7), bootstrap_means(columns, 7, groups=range(30)))


def test_questions_that_stand_or_fall_with_their_story_have_the_interval_of_the_stories() -> None:
    stories = np.random.default_rng(3).integers(0, 2, size=40).astype(float)
    questions = np.repeat(stories, 5)[:, None]
    groups = np.repeat(np.arange(40), 5).tolist()
    grouped = interval(bootstrap_means(questions, 0, groups=groups)[:, 0])
    assert grouped == pytest.approx(interval(bootstrap_means(stories[:, None], 0)[:, 0]))
    naive = interval(bootstrap_means(questions, 0)[:, 0])
    assert naive.high - naive.low < 0.6 * (grouped.high - grouped.low)


@pytest.mark.parametrize(
    ("rights", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 50, 0.0035, 0.1050), (81, 263, 0.2553, 0.3662)],
)
def test_a_share_has_wilsons_interval(rights: int, count: int, low: float, high: float) -> None:
    """The last is Newcombe's example (1998): 81 of 263."""
    found = wilson(np.array([1.0] * rights + [0.0] * (count - rights)))
    assert found == pytest.approx((low, high), abs=5e-5)


def test_examples_that_are_alike_in_groups_count_as_fewer() -> None:
    alike, mixed = np.repeat([1.0, 0.0, 0.0, 1.0, 0.0], 8), np.tile([1.0, 0.0, 0.0, 1.0, 0.0], 8)
    groups = np.repeat(np.arange(5), 8).tolist()
    wide, narrow = wilson(alike, groups), wilson(mixed, groups)
    assert wide == pytest.approx(wilson(np.array([1.0, 0.0, 0.0, 1.0, 0.0])), abs=0.1)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert narrow == wilson(mixed)  # never more than as many as there are
    assert wilson(np.ones(40), groups) == wilson(np.ones(5))
    assert wilson(alike, [0] * 40) == pytest.approx(wilson(np.array([1.0, 0.0])), abs=0.2)


def test_a_difference_that_all_examples_share_has_width_too() -> None:
    assert unanimous(0.0, 40) == pytest.approx((-0.0876, 0.0876), abs=5e-4)
    assert unanimous(1.0, 40) == pytest.approx((0.9124, 1.0), abs=5e-4)
    assert unanimous(-1.0, 2) == pytest.approx((-1.0, -0.3424), abs=5e-4)
    assert unanimous(0.5, 40) is None
