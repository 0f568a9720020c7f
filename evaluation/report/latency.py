"""How long examples took, with intervals that assume nothing of how times are spread."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median

from ..comparison import Comparison, Estimate
from ..records import ExampleRecord

__all__ = ["complete", "median_interval", "seconds_of"]


def complete(comparison: Comparison) -> set[int]:
    """The examples that failed in no variant: the ones that the table is about."""
    failed = {record.index for record in comparison.records if record.error is not None}
    return {example.index for example in comparison.examples} - failed


def seconds_of(
    comparison: Comparison, variant: str, read: Callable[[ExampleRecord], float | None], among: set[int]
) -> list[float]:
    """A number of seconds by example, the mean over seeds."""
    found: dict[int, list[float]] = {}
    for record in comparison.records_of(variant):
        value = read(record)
        if value is not None and record.index in among:
            found.setdefault(record.index, []).append(value)
    return [fmean(values) for values in found.values()]


def median_interval(values: Sequence[float]) -> Estimate | None:
    """The median and the two order statistics around it that hold the true one in 95 of 100 samples."""
    if not values:
        return None
    ordered = sorted(values)
    count = len(ordered)
    reach = 1.96 * math.sqrt(count) / 2
    low, high = math.floor(count / 2 - reach), math.ceil(count / 2 + reach)
    return Estimate(value=median(ordered), low=ordered[max(low - 1, 0)], high=ordered[min(high, count - 1)])
