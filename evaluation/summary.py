"""Table rows and paired differences from records, over the examples that finished in every variant."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

import numpy as np

from cachegraph.graph.data.examples import Example
from cachegraph.graph.run.result import AgentResult

from .comparison import AgentSummary, Difference, EdgeSummary, MetricInfo, Repeats, Spread, VariantRow
from .differences import Values, all_differences, correct, estimates
from .metrics import Metric
from .records import ExampleRecord, MemoryUse
from .stats import Floats
from .variants import VARIANTS, Name, Variant

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
    *,
    parts: int = 1,
) -> Summary:
    """Rows of all variants, and differences of all pairs of a variant and a baseline that ran.

    Fills in `metrics` of the records. `parts`: the examples are one of so many categories; the caller corrects p for
    all of them.
    """
    recorded = {variant.name: variant.records for variant in variants}
    by_name: dict[str, list[ExampleRecord]] = {}
    for variant in variants:
        names = {recorded[part] for part in variant.mean_of or (variant.name,)}
        by_name[variant.name] = [record for record in records if record.variant in names]
    rows = [_row(variant, by_name[variant.name], by_name.keys() - {variant.name}) for variant in variants]
    _refuse_means(rows)
    running = {row.name: row for row in rows if row.why_not is None}
    complete = _complete([by_name[name] for name in running], examples)
    _measure(records, complete, metrics)
    groups = [example.index if example.group is None else example.group for example in complete]
    for row in rows:
        row.examples = len(complete) if row.name in running else 0
        row.groups = len(set(groups)) if row.examples > len(set(groups)) else None
    if not complete or not running:
        return Summary(rows, [])
    values = Values(
        {name: _values(by_name[name], complete, metrics) for name in running},
        {row.name: row.same_as or row.name for row in rows},
        [MetricInfo(name=metric.name, unit=metric.unit) for metric in metrics],
        groups,
        seed,
        once=len({record.seed for record in records}) <= 1,
        parts=parts,
    )
    for name, quality in estimates(values).items():
        running[name].quality = quality
        running[name].repeats = _repeats(running[name], by_name, complete, metrics)
    differences = all_differences(values)
    if parts == 1:
        correct([differences], values.recorded)
    return Summary(rows, differences)


def _refuse_means(rows: Sequence[VariantRow]) -> None:
    """Mark means as not run if one of their parts did not run."""
    missing = {row.name for row in rows if row.why_not is not None}
    for row in rows:
        if parts := [part for part in row.mean_of if part in missing]:
            row.why_not = f"it is a mean, and {parts[0]} could not run"


def _complete(all_records: Sequence[Sequence[ExampleRecord]], examples: Sequence[Example]) -> list[Example]:
    failed = {record.index for records in all_records for record in records if record.error is not None}
    return [example for example in examples if example.index not in failed] if all_records else []


def _measure(records: Sequence[ExampleRecord], examples: Sequence[Example], metrics: Sequence[Metric]) -> None:
    """Compute the metrics of all records of these examples."""
    by_index = {example.index: example for example in examples}
    for record in records:
        if record.error is None and (example := by_index.get(record.index)) is not None:
            record.metrics = {metric.name: metric(example, record.reply, record.scores) for metric in metrics}


def _values(records: Sequence[ExampleRecord], examples: Sequence[Example], metrics: Sequence[Metric]) -> Floats:
    """(examples, metrics): means over seeds, and over fusers."""
    by_index: dict[int, list[ExampleRecord]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        by_index.setdefault(record.index, []).append(record)
    return np.array(
        [
            [fmean(record.metrics[metric.name] for record in by_index[example.index]) for metric in metrics]
            for example in examples
        ]
    )


def _repeats(
    row: VariantRow,
    by_name: Mapping[str, Sequence[ExampleRecord]],
    examples: Sequence[Example],
    metrics: Sequence[Metric],
) -> dict[str, Repeats]:
    """The means of a variant that ran with several seeds, by seed; of a mean over fusers, by variant."""
    complete = {example.index for example in examples}
    own: dict[str, list[ExampleRecord]] = {part: list(by_name[part]) for part in row.mean_of}
    if not own:
        for record in by_name[row.name]:
            own.setdefault(f"seed {record.seed}", []).append(record)
    if len(own) < 2:
        return {}
    repeats = {}
    for metric in metrics:
        values = {
            part: fmean(record.metrics[metric.name] for record in records if record.index in complete)
            for part, records in own.items()
        }
        repeats[metric.name] = Repeats(values=values, deviation=stdev(values.values()))
    return repeats


def _row(variant: Variant, records: Sequence[ExampleRecord], others: Collection[str]) -> VariantRow:
    kind, _, fuser = parsed = Name.parse(variant.name)
    on = "" if parsed.edge is None else f"; only on the edge {' → '.join(parsed.edge)}, with text on all others"
    by = f"; by the fuser {fuser}" if fuser else ""
    if variant.mean_of:
        by = f"; the mean of {', '.join(variant.mean_of)}"
    row = VariantRow(
        name=variant.name,
        description=VARIANTS[kind] + on + by,
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
    row.agents = {
        name: _agent([record.agents[name] for record in done if name in record.agents]) for name in done[0].agents
    }
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
    means = {name: fmean(getattr(result.tokens, name) for result in results) for name in tokens}
    means |= {name: fmean(getattr(result.timing, name) for result in results) for name in timing}
    return AgentSummary(**means)


def _edges(records: Sequence[ExampleRecord]) -> list[EdgeSummary]:
    by_edge: dict[tuple[str, str], list[ExampleRecord]] = {}
    for record in records:
        for edge in record.edges:
            by_edge.setdefault((edge.sender, edge.receiver), []).append(record)
    summaries = []
    for (sender, receiver), group in by_edge.items():
        reports = [report for record in group if (report := record.edge(sender, receiver)) is not None]
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
