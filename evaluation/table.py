"""A comparison as terminal tables: quality, then cost."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cachegraph.common.human import format_bytes

from .comparison import Comparison, MetricInfo, VariantRow
from .table_cells import corrected, empty_table, number, show_difference, show_estimate
from .table_details import agreement_table, category_table, edge_table, effect_table
from .variants import Name, baseline_of

__all__ = ["make_tables", "number"]


def make_tables(comparison: Comparison) -> Group:
    """The first metric with its intervals, differences and effect sizes; categories; the other metrics; costs."""
    makers = (_quality, effect_table, category_table, _others, agreement_table, _costs, edge_table)
    return Group(*(table for maker in makers if (table := maker(comparison)) is not None))


def _quality(comparison: Comparison) -> Table:
    metric = comparison.metrics[0]
    running = {Name.parse(row.name).kind for row in comparison.rows if row.why_not is None}
    baselines = [name for name in ("text", "mismatched") if name in running]
    table = empty_table(f"{comparison.graph}, {_count(comparison)}", ["variant", _title(metric)])
    repeated = any(metric.name in row.repeats for row in comparison.rows)
    if repeated:
        table.add_column("deviation", justify="right")
    for baseline in baselines:
        table.add_column(f"minus {baseline}", justify="right")
    for row in comparison.rows:
        if row.why_not is not None:
            table.add_row(Text(row.name), Text("not available", "dim"))  # the verdicts say why
            continue
        differences = [
            show_difference(comparison.difference(row.name, baseline_of(baseline, row.name)), metric)
            for baseline in baselines
        ]
        name = row.name + (f" = {row.same_as}" if row.same_as else "")
        deviation = [_deviation(row, metric)] if repeated else []
        table.add_row(Text(name), show_estimate(row.quality.get(metric.name), metric), *deviation, *differences)
    if any(difference.shown and difference.metric == metric.name for difference in comparison.differences):
        shown = [difference for difference in comparison.differences if difference.metric == metric.name]
        table.caption = f"* the interval excludes 0 and p{corrected(shown)} is below 0.05"
        table.caption_justify = "left"
    return table


def _deviation(row: VariantRow, metric: MetricInfo) -> str:
    """The standard deviation over seeds, or over the fusers of a mean."""
    repeats = row.repeats.get(metric.name)
    return "" if repeats is None else f"{number(repeats.deviation, metric)} of {len(repeats.values)}"


def _others(comparison: Comparison) -> Table | None:
    others = comparison.metrics[1:]
    if not others:
        return None
    table = empty_table(None, ["variant", *map(_title, others)])
    for row in comparison.rows:
        if row.why_not is None:
            values = (row.quality.get(metric.name) for metric in others)
            shown = (
                number(estimate.value, metric) if estimate else ""
                for estimate, metric in zip(values, others, strict=True)
            )
            table.add_row(Text(row.name), *shown)
    return table


def _costs(comparison: Comparison) -> Table:
    table = empty_table(
        None, ["variant", "seconds", "first token", "prefilled", "generated", "tokens/s", "sent", "memory"]
    )
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
        f"{row.tokens_per_second:.1f}" if row.tokens_per_second else "",
        format_bytes(sum(edge.bytes for edge in row.edges)),
        format_bytes(row.memory.gpu or row.memory.rss),
    )


def _count(comparison: Comparison) -> str:
    examples = max((row.examples for row in comparison.rows), default=0)
    groups = next((row.groups for row in comparison.rows if row.groups is not None), None)
    seeds = len(comparison.environment.seeds)
    together = f" in {groups} groups" if groups is not None else ""
    return f"{examples} examples{together}" + (f", {seeds} seeds" if seeds > 1 else "")


def _title(metric: MetricInfo) -> str:
    return metric.name.replace("_", " ") + (" %" if metric.unit == "points" else "")
