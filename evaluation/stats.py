"""Intervals and p-values for paired examples: the bootstrap, Wilson's score interval, and McNemar's exact test."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["RESAMPLES", "Interval", "bootstrap_means", "interval", "mcnemar", "two_sided", "unanimous", "wilson"]

RESAMPLES = 10_000
Z = 1.959964  # of the normal distribution's middle 95 %
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Where a value lies with 95 % confidence."""

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


def wilson(rights: Floats, groups: Sequence[Hashable] | None = None) -> Interval:
    """Wilson's score interval of a share, from a 0 or 1 an example; it has width at 0 % and 100 %, too.

    With `groups`, whose examples are alike, the examples count as as many as their variance is worth (the design
    effect of cluster samples, never below 1); where all are right or all wrong that can't be known, and a group counts
    as one example.
    """
    share, size = float(rights.mean()), float(len(rights))
    if groups is not None:
        size = _effective_size(rights, groups)
    center = (share + Z * Z / (2 * size)) / (1 + Z * Z / size)
    reach = Z * math.sqrt(share * (1 - share) / size + Z * Z / (4 * size * size)) / (1 + Z * Z / size)
    return Interval(0.0 if share == 0 else center - reach, 1.0 if share == 1 else center + reach)


def _effective_size(rights: Floats, groups: Sequence[Hashable]) -> float:
    sums, sizes = _by_group(rights[:, None], groups)
    count, total, share = len(sums), float(len(rights)), float(rights.mean())
    if count == 1 or share in (0.0, 1.0):
        return float(count)
    residuals = sums[:, 0] - share * sizes
    variance = float(residuals @ residuals) * count / (count - 1) / total**2
    return min(total, share * (1 - share) / variance) if variance > 0 else total


def unanimous(difference: float, examples: int) -> Interval | None:
    """The interval of a mean difference where all examples, or groups, differ alike: by -1, 0 or 1; else None.

    A bootstrap would have no width there. The share of examples that differ in another way is bounded by Wilson.
    """
    if difference not in (-1.0, 0.0, 1.0):
        return None
    other = Z * Z / (examples + Z * Z)
    return Interval(max(difference - other, -1.0), min(difference + other, 1.0))


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
