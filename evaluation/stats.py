"""Intervals and p-values for paired examples: the bootstrap over examples or their groups, and McNemar's exact test."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["RESAMPLES", "Interval", "bootstrap_means", "interval", "mcnemar", "two_sided"]

RESAMPLES = 10_000
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """The middle 95 % of what resampled examples give."""

    low: float
    high: float


def bootstrap_means(
    columns: Floats, seed: int, resamples: int = RESAMPLES, groups: Sequence[Hashable] | None = None
) -> Floats:
    """(resamples, columns): the mean of each column over examples drawn again, the same ones for all columns.

    `columns` is (examples, columns). `groups` has an entry an example: those of one group are drawn together, as many
    groups as there are (the cluster bootstrap). How often each is drawn is multinomial, which needs no list of draws.
    """
    sums, sizes = (columns, np.ones(len(columns))) if groups is None else _by_group(columns, groups)
    count = len(sums)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, columns.shape[1]))
    step = max(1, 2_000_000 // count)
    for start in range(0, resamples, step):
        part = slice(start, min(start + step, resamples))
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=part.stop - start).astype(np.float64)
        means[part] = drawn @ sums / (drawn @ sizes)[:, None]
    return means


def _by_group(columns: Floats, groups: Sequence[Hashable]) -> tuple[Floats, Floats]:
    """By group, the sum of its examples' rows and how many they are."""
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    where = np.array([places[group] for group in groups])
    sums = np.zeros((len(places), columns.shape[1]))
    np.add.at(sums, where, columns)
    return sums, np.bincount(where, minlength=len(places)).astype(np.float64)


def interval(means: Floats) -> Interval:
    """The percentile interval of one column's resampled means."""
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(low), float(high))


def two_sided(differences: Floats) -> float:
    """The bootstrap's p for no difference: twice the share of resamples on the rarer side of 0, never quite 0."""
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p for as many examples that only one of two gets right: would a fair coin be as uneven?"""
    discordant = only_first + only_second
    term = total = 1
    for k in range(min(only_first, only_second)):
        term = term * (discordant - k) // (k + 1)
        total += term
    # Fractions of huge whole numbers, rounded once.
    return min(1.0, 2 * _ratio(total, discordant))


def _ratio(numerator: int, power_of_two: int) -> float:
    shift = max(numerator.bit_length() - 64, 0)
    return math.ldexp(float(numerator >> shift), shift - power_of_two)
