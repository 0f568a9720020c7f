"""Verdicts: sentences that state what the numbers show.

A difference is shown if its 95 % interval excludes 0 and its p, corrected for all comparisons, is below 0.05. A cache
communicates if the receiver does better with it than alone, and better than with another example's.
"""

from collections.abc import Sequence

from .comparison import Difference, MetricInfo, VariantRow
from .summary import fallback
from .table import number
from .variants import CACHED, TUNED, Name, control_of

__all__ = ["verdicts"]

FEW = 30


def verdicts(rows: Sequence[VariantRow], differences: Sequence[Difference], metric: MetricInfo) -> list[str]:
    """Sentences about each variant with cache edges in this metric, then the limits of the comparison."""
    running = {row.name: row for row in rows if row.why_not is None}
    table = {
        (difference.variant, difference.baseline): difference
        for difference in differences
        if difference.metric == metric.name
    }
    said: list[str] = []
    parsed = {name: Name.parse(name) for name in running}
    cached = sorted(
        (name for name, variant in parsed.items() if variant.kind in CACHED and variant.edge is None), key=_order
    )
    for name in cached:
        said += _about(running[name], running, table, metric)
    if not cached:
        said.append("no variant with cache edges ran, so nothing can be said about the cache")
    return said + _limits(rows, running)


def _order(name: str) -> int:
    return CACHED.index(Name.parse(name).kind)


Table = dict[tuple[str, str], Difference]


def _about(row: VariantRow, running: dict[str, VariantRow], table: Table, metric: MetricInfo) -> list[str]:
    if not row.cache_share:
        return [f"{row.name}: the cache was never used; {fallback(row)}. This says nothing about the cache."]
    said = []
    if row.cache_share < 1:
        used = f"{row.name}: the cache was used on {row.cache_share:.0%} of the deliveries that asked for one"
        said.append(f"{used}; on the others, {fallback(row)}")
    if (row.name, "text") in table:
        said.append(against(table[row.name, "text"], metric))
    tuned = [control for control in running if Name.parse(control).kind in TUNED and (row.name, control) in table]
    said += [against(table[row.name, control], metric) for control in tuned]
    said.append(_communication(row.name, running, table, metric))
    return said


def against(difference: Difference, metric: MetricInfo) -> str:
    """A sentence about one pair: which variant is better and by how much, or that no difference is shown."""
    first, second = difference.variant, difference.baseline
    if not difference.shown:
        low, high = (number(bound, metric, True) for bound in (difference.low, difference.high))
        value = number(difference.value, metric, True)
        return f"no difference shown between {first} and {second} ({_unit(value, metric)}, {low} to {high})"
    ends = [difference.low, difference.high]
    if difference.value < 0:
        first, second, ends = second, first, [-difference.high, -difference.low]
    low, high = (number(bound, metric) for bound in ends)
    return f"{first} beats {second} by {_unit(number(abs(difference.value), metric), metric)} ({low} to {high})"


def _communication(name: str, running: dict[str, VariantRow], table: Table, metric: MetricInfo) -> str:
    control = control_of(name)
    alone = _over_alone(name, table)
    wrong = table.get((name, control))
    if alone is None or wrong is None:
        missing = [baseline for baseline, difference in (("alone", alone), (control, wrong)) if difference is None]
        return f"{name}: without {' and '.join(missing)} nothing is said about communication; add these variants"
    if _worse(alone):
        return f"{against(alone, metric)}: the cache does harm"
    if not _better(alone):
        beats = f"; {against(wrong, metric)}" if _better(wrong) else ""
        return f"{against(alone, metric)}: no communication shown{beats}"
    if _better(wrong):
        return f"{against(alone, metric)}, and {against(wrong, metric)}: what the cache carries is used"
    by_wrong = _over_alone(control, table)
    if by_wrong is not None and _better(by_wrong):
        return (
            f"{name} beats alone, but so does a mismatched cache: this is not communication ({against(wrong, metric)})"
        )
    return f"{against(alone, metric)}, but {against(wrong, metric)}: no communication shown"


def _over_alone(name: str, table: Table) -> Difference | None:
    return table.get((name, "alone"), table.get((name, "floor")))


def _better(difference: Difference) -> bool:
    return difference.shown and difference.value > 0


def _worse(difference: Difference) -> bool:
    return difference.shown and difference.value < 0


def _unit(value: str, metric: MetricInfo) -> str:
    return f"{value} {metric.unit}" if metric.unit else f"{value} in {metric.name}"


def _limits(rows: Sequence[VariantRow], running: dict[str, VariantRow]) -> list[str]:
    said = [f"{row.name} could not run: {row.why_not}" for row in rows if row.why_not is not None]
    examples = max((row.examples for row in running.values()), default=0)
    if running and examples == 0:
        said.append("no example finished in every variant, so there is nothing to compare")
    for row in running.values():
        if row.failed and row.was_run:
            reason = next(iter(row.errors), "")
            said.append(f"{row.failed} examples failed in {row.name} and are left out everywhere ({reason})")
    return said
