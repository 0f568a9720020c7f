"""Table rows and paired differences from records, over the examples that finished in every variant."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

from cachegraph.graph.data.examples import Example
from cachegraph.graph.run.result import AgentResult

from .comparison import AgentSummary, Difference, EdgeSummary, Estimate, Spread, VariantRow
from .metrics import Metric
from .records import ExampleRecord, MemoryUse
from .stats import Floats, bootstrap_means, interval, mcnemar, two_sided, unanimous, wilson
from .variants import VARIANTS, Name, Variant, control_of

__all__ = ["Summary", "fallback", "summarise"]


@dataclass(frozen=True)
class Summary:
    """The table rows, and the paired differences behind the verdicts."""

    rows: list[VariantRow]
    differences: list[Difference]


def summarise(
    variants: Sequence[Variant],
    records: Sequence[ExampleRecord],
    examples: Sequence[Example],
    metrics: Sequence[Metric],
    seed: int,
) -> Summary:
    """Rows of all variants, and differences of all pairs of a variant and a baseline that ran."""
    recorded = {variant.name: variant.records for variant in variants}
    by_name: dict[str, list[ExampleRecord]] = {}
    for variant in variants:
        names = {recorded[each] for each in variant.mean_of or (variant.name,)}
        by_name[variant.name] = [record for record in records if record.variant in names]
    rows = [_row(variant, by_name[variant.name], by_name.keys() - {variant.name}) for variant in variants]
    _refuse_means(rows)
    running = [row.name for row in rows if row.why_not is None]
    complete = _complete([by_name[name] for name in running], examples)
    values = {name: _values(by_name[name], complete, metrics) for name in running}
    groups = [example.index if example.group is None else example.group for example in complete]
    for row in rows:
        row.examples = len(complete) if row.name in running else 0
        row.groups = len(set(groups)) if row.examples > len(set(groups)) else None
    if not complete:
        return Summary(rows, [])
    once = len({record.seed for record in records}) <= 1
    return _with_statistics(rows, values, metrics, seed, groups, once)


def _refuse_means(rows: Sequence[VariantRow]) -> None:
    """Mark means as not run if one of their parts did not run."""
    missing = {row.name for row in rows if row.why_not is not None}
    for row in rows:
        if parts := [each for each in row.mean_of if each in missing]:
            row.why_not = f"it is a mean, and {parts[0]} could not run"


def _complete(all_records: Sequence[Sequence[ExampleRecord]], examples: Sequence[Example]) -> list[Example]:
    failed = {record.index for records in all_records for record in records if record.error is not None}
    return [example for example in examples if example.index not in failed] if all_records else []


def _values(records: Sequence[ExampleRecord], examples: Sequence[Example], metrics: Sequence[Metric]) -> Floats:
    """(examples, metrics): means over seeds, and over fusers."""
    by_index: dict[int, list[ExampleRecord]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        by_index.setdefault(record.index, []).append(record)
    return np.array(
        [
            [fmean(metric(example, each.reply, each.scores) for each in by_index[example.index]) for metric in metrics]
            for example in examples
        ]
    )


def _with_statistics(
    rows: Sequence[VariantRow],
    values: Mapping[str, Floats],
    metrics: Sequence[Metric],
    seed: int,
    groups: Sequence[int | str],
    once: bool,
) -> Summary:
    """Add estimates to the rows. `once`: each example has one record per variant, so McNemar's test applies."""
    pairs = [(name, base) for name in values for base in _baselines(name, values) if base in values and base != name]
    columns = np.concatenate([*values.values(), *(values[name] - values[base] for name, base in pairs)], axis=1)
    apart = len(set(groups)) == len(groups)
    means = bootstrap_means(columns, seed, groups=None if apart else groups)
    count = len(metrics)
    for place, name in enumerate(values):
        row = next(row for row in rows if row.name == name)
        for number, metric in enumerate(metrics):
            own = values[name][:, number]
            share = metric.unit == "points" and _is_binary(own)
            ends = wilson(own, None if apart else groups) if share else interval(means[:, place * count + number])
            row.quality[metric.name] = Estimate(value=float(own.mean()), low=ends.low, high=ends.high)
    recorded = {row.name: row.same_as or row.name for row in rows}
    differences = []
    for place, (name, base) in enumerate(pairs, len(values)):
        for number, metric in enumerate(metrics):
            own, other = values[name][:, number], values[base][:, number]
            test = _test(own, other, means[:, place * count + number], len(set(groups)), once and apart)
            if metric.unit == "points" and recorded[name] != recorded[base]:
                test = _with_width(test, own - other, len(set(groups)))
            differences.append(Difference(variant=name, baseline=base, metric=metric.name, **test))
    return Summary(list(rows), differences)


def _baselines(name: str, values: Mapping[str, Floats]) -> tuple[str, ...]:
    """The baselines of a variant: text, its fuser's mismatched control, alone, its channel's control."""
    alone = "floor" if "alone" not in values else "alone"  # two names of one variant
    own = f"@{fuser}" if (fuser := Name.parse(name).fuser) else ""
    return tuple(dict.fromkeys(("text", f"mismatched{own}", alone, control_of(name))))


def _test(variant: Floats, baseline: Floats, resampled: Floats, groups: int, counts: bool) -> dict[str, Any]:
    """A difference's value, interval and p. `counts`: examples are independent with one value each, so McNemar's test
    applies to binary metrics."""
    low, high = interval(resampled)
    binary = counts and _is_binary(variant) and _is_binary(baseline)
    if binary:
        p = mcnemar(int((variant > baseline).sum()), int((variant < baseline).sum()))
    else:
        lone = groups == 1 < len(variant)  # one group says nothing about others
        p = 1.0 if lone or not np.any(variant != baseline) else two_sided(resampled)
    name = "McNemar, exact" if binary else "paired bootstrap"
    return {"value": float((variant - baseline).mean()), "low": low, "high": high, "p": p, "test": name}


def _with_width(test: dict[str, Any], differences: Floats, groups: int) -> dict[str, Any]:
    """The test if all examples differ alike, where a bootstrap has no width and its p ignores their number."""
    ends = unanimous(float(differences[0]), groups) if np.all(differences == differences[0]) else None
    if ends is None:
        return test
    alike = mcnemar(groups, 0) if differences[0] else 1.0
    return test | {"low": ends.low, "high": ends.high, "p": max(test["p"], alike)}


def _is_binary(values: Floats) -> bool:
    return bool(np.all((values == 0) | (values == 1)))


def _row(variant: Variant, records: Sequence[ExampleRecord], others: Collection[str]) -> VariantRow:
    kind, _, fuser = Name.parse(variant.name)
    by = f"; by the fuser {fuser}" if fuser else ""
    if variant.mean_of:
        by = f"; the mean of {', '.join(variant.mean_of)}"
    row = VariantRow(
        name=variant.name,
        description=VARIANTS[kind] + by,
        why_not=variant.why_not,
        recorded_as=variant.records,
        mean_of=variant.mean_of,
    )
    if variant.why_not is not None:
        return row
    row.same_as = variant.records if variant.records in others else None
    done = [record for record in records if record.error is None]
    row.failed = len(records) - len(done)
    row.errors = dict(Counter(record.error for record in records if record.error is not None).most_common(5))
    row.memory = MemoryUse(
        rss=max((record.memory.rss for record in records), default=0),
        gpu=max((record.memory.gpu for record in records), default=0),
    )
    if not done:
        row.why_not = f"every example failed: {next(iter(row.errors), 'none was run')}"
        return row
    row.seconds = _spread([record.seconds for record in done])
    first = [record.first_token for record in done if record.first_token is not None]
    row.first_token = _spread(first) if first else None
    row.agents = {name: _agent([each.agents[name] for each in done if name in each.agents]) for name in done[0].agents}
    row.edges = _edges(done)
    asked = [edge for edge in row.edges if edge.asked != "text"]
    if asked:
        journeys = sum(sum(edge.used.values()) for edge in asked)
        row.cache_share = sum(edge.used.get("cache", 0) + edge.used.get("both", 0) for edge in asked) / journeys
    if variant.control is not None and not row.cache_share:
        row.why_not = f"no cache arrived that the control could replace: {fallback(row)}"
    return row


def fallback(row: VariantRow) -> str:
    """The most frequent reason why edges that asked for a cache did not carry one."""
    reasons: Counter[str] = Counter()
    for edge in row.edges:
        reasons.update(edge.fallbacks)
    if not reasons:
        return "it has no edge that could carry one"
    more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
    return f"the edges fell back to text: {reasons.most_common(1)[0][0]}{more}"


def _spread(seconds: Sequence[float]) -> Spread:
    return Spread(median=median(seconds), mean=fmean(seconds))


def _agent(results: Sequence[AgentResult]) -> AgentSummary:
    tokens, timing = ("prefilled", "generated", "reused"), ("queued", "prefill", "transfer", "fuse", "decode")
    means = {name: fmean(getattr(each.tokens, name) for each in results) for name in tokens}
    means |= {name: fmean(getattr(each.timing, name) for each in results) for name in timing}
    return AgentSummary(**means)


def _edges(records: Sequence[ExampleRecord]) -> list[EdgeSummary]:
    found: dict[tuple[str, str], list[ExampleRecord]] = {}
    for record in records:
        for edge in record.edges:
            found.setdefault((edge.sender, edge.receiver), []).append(record)
    summaries = []
    for (sender, receiver), each in found.items():
        reports = [report for record in each if (report := record.edge(sender, receiver)) is not None]
        summaries.append(
            EdgeSummary(
                sender=sender,
                receiver=receiver,
                asked=reports[0].asked,
                used=dict(Counter(report.channel_used for report in reports)),
                fallbacks=dict(Counter(report.fallback_reason for report in reports if report.fallback_reason)),
                bytes=fmean(report.bytes for report in reports),
                positions_fused=fmean(report.positions_fused for report in reports),
                positions_grafted=fmean(report.positions_grafted for report in reports),
            )
        )
    return summaries
