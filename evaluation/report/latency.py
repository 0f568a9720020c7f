"""Latency of examples, with intervals that assume no distribution."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median

from ..comparison import Comparison, Estimate
from ..records import ExampleRecord

__all__ = ["complete", "median_interval", "seconds_of"]


def complete(comparison: Comparison) -> set[int]:
    """Return the examples that failed in no variant, as the table does."""
    failed = {record.index for record in comparison.records if record.error is not None}
    return {example.index for example in comparison.examples} - failed


def seconds_of(
    comparison: Comparison, variant: str, read: Callable[[ExampleRecord], float | None], among: set[int]
) -> list[float]:
    """Return seconds per example, the mean over seeds."""
    found: dict[int, list[float]] = {}
    for record in comparison.records_of(variant):
        value = read(record)
        if value is not None and record.index in among:
            found.setdefault(record.index, []).append(value)
    return [fmean(values) for values in found.values()]


def median_interval(values: Sequence[float]) -> Estimate | None:
    """Return the median and its 95 % interval, which is a pair of order statistics."""
    if not values:
        return None
    ordered = sorted(values)
    count = len(ordered)
    reach = 1.96 * math.sqrt(count) / 2
    low, high = math.floor(count / 2 - reach), math.ceil(count / 2 + reach)
    return Estimate(value=median(ordered), low=ordered[max(low - 1, 0)], high=ordered[min(high, count - 1)])
