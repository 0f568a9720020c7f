"""Effect sizes of paired examples, Holm's correction, and the smallest difference that n examples can show."""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from .stats import Floats, Interval, mcnemar

__all__ = [
    "OddsRatio",
    "clopper_pearson",
    "cohens_h",
    "detectable",
    "detectable_mean",
    "holm",
    "matched_odds_ratio",
    "standardised",
]

ALPHA, POWER = 0.05, 0.8
STEPS = 60  # of a bisection on [0, 1]: below the precision of a float


class OddsRatio(NamedTuple):
    """An odds ratio and its 95 % interval. The ends may be 0 and infinity."""

    value: float
    low: float
    high: float


def cohens_h(first: float, second: float) -> float:
    """Cohen's h of two shares: the difference of their arcsine transforms. 0.2 is small, 0.5 medium, 0.8 large
    (Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, chapter 6)."""
    return 2 * math.asin(math.sqrt(first)) - 2 * math.asin(math.sqrt(second))


def standardised(differences: Floats) -> float | None:
    """Mean of paired differences (examples,) over their standard deviation, Cohen's d_z. None without spread."""
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return float(differences.mean()) / spread if spread > 0 else None


def matched_odds_ratio(only_first: int, only_second: int) -> OddsRatio | None:
    """Conditional odds ratio of matched pairs: examples that only the first variant gets right, over those that only
    the second does, with its exact interval. None if the two never differ."""
    discordant = only_first + only_second
    if not discordant:
        return None
    ends = clopper_pearson(only_first, discordant)
    return OddsRatio(*(_odds(share) for share in (only_first / discordant, ends.low, ends.high)))


def clopper_pearson(successes: int, trials: int) -> Interval:
    """The exact 95 % interval of a share of independent trials (Clopper and Pearson, Biometrika 26, 1934)."""
    terms = _log_binomials(trials)
    low = _root(lambda p: _tail(terms, successes, p) - ALPHA / 2) if successes else 0.0
    high = _root(lambda p: ALPHA / 2 - _tail(terms[::-1], trials - successes, 1 - p)) if successes < trials else 1.0
    return Interval(low, high)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method (Scandinavian Journal of Statistics 6, 1979)."""
    corrected = [0.0] * len(values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = largest
    return corrected


def detectable(examples: int, discordant: float, *, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The smallest difference of two shares that McNemar's test finds with this power among `examples` pairs.

    `discordant` is the share of examples on which exactly one variant is right. The normal approximation of Connor
    (Biometrics 43, 1987), but never less than what the exact test needs if all differing examples differ the same way.
    None if the test can't be significant with so few examples.
    """
    needed = next((number for number in range(1, examples + 1) if mcnemar(number, 0) < alpha), None)
    if needed is None:
        return None
    at_alpha, at_power = _quantile(1 - alpha / 2), _quantile(power)

    def found(difference: float) -> float:
        """Negative where the examples don't suffice for this difference."""
        differing = max(discordant, difference)
        reach = at_alpha * math.sqrt(differing) + at_power * math.sqrt(max(differing - difference**2, 0.0))
        return examples * difference**2 - reach**2

    return max(_root(found), needed / examples) if found(1.0) >= 0 else 1.0


def detectable_mean(error: float, *, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The smallest mean difference that a test finds with this power, from the standard error of the mean difference.
    None if there is no spread to judge by."""
    return (_quantile(1 - alpha / 2) + _quantile(power)) * error if error > 0 else None


def _odds(share: float) -> float:
    return share / (1 - share) if share < 1 else math.inf


def _quantile(share: float) -> float:
    return NormalDist().inv_cdf(share)


def _log_binomials(trials: int) -> Floats:
    """(trials + 1,): the logarithms of all binomial coefficients."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])  # of factorials
    return np.asarray(logs[-1] - logs - logs[::-1])


def _tail(terms: Floats, least: int, share: float) -> float:
    """The probability of `least` or more successes."""
    if share in (0.0, 1.0):
        return float(least == 0 or share == 1.0)
    counts = np.arange(least, len(terms))
    logs = terms[least:] + counts * math.log(share) + (len(terms) - 1 - counts) * math.log1p(-share)
    return min(float(np.exp(logs).sum()), 1.0)


def _root(rising: Callable[[float], float]) -> float:
    """Where a function that rises on [0, 1] changes its sign."""
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
