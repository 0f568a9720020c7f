"""A comparison for a terminal."""

from rich.table import Table

from .comparison import Comparison, Difference, Estimate, MetricInfo, VariantRow

__all__ = ["make_table", "number"]


def make_table(comparison: Comparison) -> Table:
    """One row a variant: the first metric with its intervals and differences, the others' values, time and bytes."""
    first, *others = comparison.metrics
    table = Table(title=f"{comparison.graph}: {_count(comparison)}", title_justify="left", box=None, pad_edge=False)
    table.add_column("variant", no_wrap=True)
    baselines = [name for name in ("text", "mismatched") if _runs(comparison, name)]
    for title in [_title(first), *(f"- {name}" for name in baselines), *map(_title, others)]:
        table.add_column(title, justify="right")
    for title in ("seconds", "first token", "prefilled", "generated", "sent"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in comparison.rows:
        if row.why_not is not None:
            table.add_row(row.name, f"[dim]not available: {row.why_not}")
            continue
        differences = [comparison.difference(row.name, baseline) for baseline in baselines]
        table.add_row(
            row.name + (f" (= {row.same_as})" if row.same_as else ""),
            _estimate(row.quality.get(first.name), first),
            *(_difference(each, first) for each in differences),
            *(_value(row.quality.get(metric.name), metric) for metric in others),
            *_costs(row),
        )
    return table


def number(value: float, metric: MetricInfo, sign: bool = False) -> str:
    """A value or difference in its metric's unit: points with one decimal, nats and other numbers with more."""
    shown = f"{value * 100:+.1f}" if metric.unit == "points" else f"{value:+.3f}"
    return shown if sign else shown.removeprefix("+")


def _runs(comparison: Comparison, name: str) -> bool:
    row = comparison.row(name)
    return row is not None and row.why_not is None


def _count(comparison: Comparison) -> str:
    examples = max((row.examples for row in comparison.rows), default=0)
    seeds = len(comparison.environment.seeds)
    return f"{examples} examples" + (f", {seeds} seeds" if seeds > 1 else "")


def _title(metric: MetricInfo) -> str:
    return metric.name.replace("_", " ") + (" %" if metric.unit == "points" else "")


def _estimate(estimate: Estimate | None, metric: MetricInfo) -> str:
    if estimate is None:
        return ""
    low, high = number(estimate.low, metric), number(estimate.high, metric)
    return f"{number(estimate.value, metric)} [dim]({low} to {high})[/]"


def _value(estimate: Estimate | None, metric: MetricInfo) -> str:
    return number(estimate.value, metric) if estimate is not None else ""


def _difference(difference: Difference | None, metric: MetricInfo) -> str:
    if difference is None:
        return ""
    low, high = number(difference.low, metric, True), number(difference.high, metric, True)
    text = f"{number(difference.value, metric, True)} [dim]({low} to {high}) p {difference.p:.2g}[/]"
    return f"[bold]{text}[/]" if difference.shown else text


def _costs(row: VariantRow) -> tuple[str, ...]:
    agents = row.agents.values()
    sent = sum(edge.bytes for edge in row.edges)
    return (
        f"{row.seconds.median:.3f}" if row.seconds else "",
        f"{row.first_token.median:.3f}" if row.first_token else "",
        f"{sum(agent.prefilled for agent in agents):.0f}",
        f"{sum(agent.generated for agent in agents):.1f}",
        f"{sent / 1e6:.2f} MB" if sent >= 1e5 else f"{sent:.0f} B",
    )
