"""Confidence intervals and p-values for paired examples: bootstrap, Wilson's interval, McNemar's exact test."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "RESAMPLES",
    "Interval",
    "bootstrap_means",
    "interval",
    "is_binary",
    "mcnemar",
    "two_sided",
    "unanimous",
    "wilson",
]

RESAMPLES = 10_000
Z = 1.959964  # of the normal distribution's middle 95 %
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


def bootstrap_means(
    columns: Floats, seed: int, resamples: int = RESAMPLES, groups: Sequence[Hashable] | None = None
) -> Floats:
    """(resamples, columns): bootstrap means of each column. All columns use the same draws.

    `columns` is (examples, columns). `groups` has an entry per example; examples of a group are drawn together (the
    cluster bootstrap). Draws are counts of a multinomial distribution, which needs no list of indices.
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
    """(groups, columns) sums of each group's examples, and (groups,) their numbers."""
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
    """Wilson's score interval of a share, from a 0 or 1 per example. It has width at 0 % and 100 % too.

    With `groups` of correlated examples, their number is divided by the design effect of cluster samples, which is at
    least 1. If all are right or all wrong, the effect can't be estimated, and a group counts as one example.
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
    """The interval of a mean difference if all examples, or groups, differ by the same -1, 0 or 1; else None.

    A bootstrap interval would have no width. Wilson's interval bounds the share of examples that differ otherwise.
    """
    if difference not in (-1.0, 0.0, 1.0):
        return None
    other = Z * Z / (examples + Z * Z)
    return Interval(max(difference - other, -1.0), min(difference + other, 1.0))


def two_sided(differences: Floats) -> float:
    """Two-sided bootstrap p: twice the share of resamples on the rarer side of 0, never exactly 0."""
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided p, from the examples that only one of two variants gets right."""
    discordant = only_first + only_second
    term = total = 1
    for k in range(min(only_first, only_second)):
        term = term * (discordant - k) // (k + 1)
        total += term
    # A quotient of huge integers, rounded once.
    return min(1.0, 2 * _ratio(total, discordant))


def _ratio(numerator: int, power_of_two: int) -> float:
    shift = max(numerator.bit_length() - 64, 0)
    return math.ldexp(float(numerator >> shift), shift - power_of_two)


def is_binary(values: Floats) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.all((values == 0) | (values == 1)))
