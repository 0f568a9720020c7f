"""A comparison as terminal tables: quality, then cost."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cachegraph.common.human import format_bytes

from .comparison import Comparison, Difference, Estimate, MetricInfo, VariantRow
from .variants import Name

__all__ = ["make_tables", "number"]


def make_tables(comparison: Comparison) -> Group:
    """The first metric with its intervals and differences; the other metrics; time, tokens and bytes."""
    return Group(*(table for table in (_quality(comparison), _others(comparison), _costs(comparison)) if table))


def number(value: float, metric: MetricInfo, sign: bool = False) -> str:
    """A value or difference in its metric's unit: points with one decimal, other units with three."""
    shown = f"{value * 100:+.1f}" if metric.unit == "points" else f"{value:+.3f}"
    return shown if sign else shown.removeprefix("+")


def _quality(comparison: Comparison) -> Table:
    metric = comparison.metrics[0]
    running = {Name.parse(row.name).kind for row in comparison.rows if row.why_not is None}
    baselines = [name for name in ("text", "mismatched") if name in running]
    table = _table(f"{comparison.graph}, {_count(comparison)}", ["variant", _title(metric)])
    for baseline in baselines:
        table.add_column(f"minus {baseline}", justify="right")
    for row in comparison.rows:
        if row.why_not is not None:
            table.add_row(Text(row.name), Text("not available", "dim"))  # the verdicts say why
            continue
        differences = [
            _difference(comparison.difference(row.name, _own(baseline, row.name)), metric) for baseline in baselines
        ]
        name = row.name + (f" = {row.same_as}" if row.same_as else "")
        table.add_row(Text(name), _estimate(row.quality.get(metric.name), metric), *differences)
    if any(difference.shown and difference.metric == metric.name for difference in comparison.differences):
        table.caption = "* the interval excludes 0 and p is below 0.05"
        table.caption_justify = "left"
    return table


def _others(comparison: Comparison) -> Table | None:
    others = comparison.metrics[1:]
    if not others:
        return None
    table = _table(None, ["variant", *map(_title, others)])
    for row in comparison.rows:
        if row.why_not is None:
            values = (row.quality.get(metric.name) for metric in others)
            shown = (number(each.value, metric) if each else "" for each, metric in zip(values, others, strict=True))
            table.add_row(Text(row.name), *shown)
    return table


def _costs(comparison: Comparison) -> Table:
    table = _table(None, ["variant", "seconds", "first token", "prefilled", "generated", "sent", "memory"])
    for row in comparison.rows:
        if row.was_run:
            table.add_row(Text(row.name), *_cost(row))
    return table


def _cost(row: VariantRow) -> tuple[str, ...]:
    agents = row.agents.values()
    return (
        f"{row.seconds.median:.3f}" if row.seconds else "",
        f"{row.first_token.median:.3f}" if row.first_token else "",
        f"{sum(agent.prefilled for agent in agents):.0f}",
        f"{sum(agent.generated for agent in agents):.1f}",
        format_bytes(sum(edge.bytes for edge in row.edges)),
        format_bytes(row.memory.gpu or row.memory.rss),
    )


def _table(title: str | None, columns: Sequence[str]) -> Table:
    table = Table(title=None if title is None else Text(title), title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if index else "left", no_wrap=not index)
    return table


def _own(baseline: str, name: str) -> str:
    """The baseline's name for a variant: the mismatched control uses the variant's fuser."""
    fuser = Name.parse(name).fuser
    return f"{baseline}@{fuser}" if baseline == "mismatched" and fuser else baseline


def _count(comparison: Comparison) -> str:
    examples = max((row.examples for row in comparison.rows), default=0)
    groups = next((row.groups for row in comparison.rows if row.groups is not None), None)
    seeds = len(comparison.environment.seeds)
    together = f" in {groups} groups" if groups is not None else ""
    return f"{examples} examples{together}" + (f", {seeds} seeds" if seeds > 1 else "")


def _title(metric: MetricInfo) -> str:
    return metric.name.replace("_", " ") + (" %" if metric.unit == "points" else "")


def _estimate(estimate: Estimate | None, metric: MetricInfo) -> Text:
    if estimate is None:
        return Text()
    low, high = number(estimate.low, metric), number(estimate.high, metric)
    return Text.assemble(f"{number(estimate.value, metric)} ", (f"({low} to {high})", "dim"))


def _difference(difference: Difference | None, metric: MetricInfo) -> Text:
    if difference is None:
        return Text()
    low, high = number(difference.low, metric, True), number(difference.high, metric, True)
    star = "*" if difference.shown else " "
    return Text.assemble(f"{number(difference.value, metric, True)} ", (f"({low} to {high})", "dim"), star)
