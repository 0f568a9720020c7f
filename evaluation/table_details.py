"""Terminal tables behind the first one: effect sizes, categories, agreement with the text, and edges."""

from rich.table import Table
from rich.text import Text

from cachegraph.common.human import format_bytes

from .comparison import Category, Comparison, MetricInfo
from .table_cells import corrected, empty_table, number, show_difference, show_estimate, show_p, show_ratio
from .variants import CACHED, Name, baseline_of

__all__ = ["agreement_table", "category_table", "edge_table", "effect_table"]


def effect_table(comparison: Comparison) -> Table | None:
    """p, effect sizes, and what the examples can show: of variants with caches, in the first metric."""
    metric = comparison.metrics[0]
    aliases = {row.name for row in comparison.rows if row.same_as is not None}
    found = [
        each
        for each in comparison.differences
        if each.metric == metric.name and Name.parse(each.variant).kind in CACHED and each.variant not in aliases
    ]
    if not found:
        return None
    counts = any(each.odds_ratio is not None for each in found)
    binary = any(each.cohens_h is not None for each in found)
    effects = [*(["Cohen's h"] if binary else ["d"]), *(["odds ratio"] if counts else [])]
    table = empty_table(None, ["variant", "minus", "p", "p, Holm", *effects, "detectable"], (0, 1))
    for each in found:
        effect = each.cohens_h if binary else each.standardised
        ratio = [] if not counts else [show_ratio(each.odds_ratio)]
        table.add_row(
            Text(each.variant),
            Text(each.baseline),
            show_p(each.p),
            show_p(each.p_corrected),
            "" if effect is None else f"{effect:+.2f}",
            *ratio,
            "" if each.detectable is None else number(each.detectable, metric),
        )
    table.caption = "detectable: the smallest difference that as many examples show with 80 % power"
    table.caption_justify = "left"
    return table


def category_table(comparison: Comparison) -> Table | None:
    """The first metric of every variant in every category."""
    by, metric = comparison.by, comparison.metrics[0]
    if by is None:
        return None
    baselines = [name for name in ("text", "mismatched") if any(name in each.quality for each in by.categories)]
    head = [by.column, "examples", "variant", metric.name.replace("_", " ") + (" %" if metric.unit == "points" else "")]
    table = empty_table(f"by {by.column}", [*head, *(f"minus {name}" for name in baselines)], (0, 2))
    for category in by.categories:
        first: list[str | Text] = [Text(category.name), str(category.examples)]
        if not category.quality:
            table.add_row(*first, Text("no example finished in every variant", "dim"))
        for variant, quality in category.quality.items():
            pairs = [_pair(category, variant, baseline, metric) for baseline in baselines]
            table.add_row(*first, Text(variant), show_estimate(quality.get(metric.name), metric), *pairs)
            first = [Text(), ""]
    shown = [each for category in by.categories for each in category.differences]
    if any(each.shown and each.metric == metric.name for each in shown):
        table.caption = f"* the interval excludes 0 and p{corrected(shown)} is below 0.05"
        table.caption_justify = "left"
    return table


def agreement_table(comparison: Comparison) -> Table | None:
    """How alike the choices are judged with the text and with the cache."""
    if not comparison.agreements:
        return None
    share, nats = MetricInfo(name="same_choice", unit="points"), MetricInfo(name="kl", unit="nats")
    table = empty_table(None, ["variant", "same choice as text %", "KL(text, variant), nats"])
    for each in comparison.agreements:
        table.add_row(Text(each.variant), show_estimate(each.same_choice, share), show_estimate(each.kl, nats))
    return table


def edge_table(comparison: Comparison) -> Table | None:
    """Bytes by edge and position, beside the bytes of the same edge's text."""
    text = comparison.row("text")
    rows = [
        (row, edge)
        for row in comparison.rows
        if row.was_run and Name.parse(row.name).kind in CACHED
        for edge in row.edges
        if edge.asked != "text"
    ]
    if not rows:
        return None
    table = empty_table(None, ["variant", "edge", "sent", "positions", "bytes a position", "as text"], (0, 1))
    for row, edge in rows:
        words = text.edge(edge.sender, edge.receiver) if text is not None else None
        each = edge.bytes_per_position
        table.add_row(
            Text(row.name),
            Text(f"{edge.sender} → {edge.receiver}"),
            format_bytes(edge.bytes),
            f"{edge.positions_fused + edge.positions_grafted:.0f}",
            "" if each is None else f"{each:,.0f}",
            "" if words is None else format_bytes(words.bytes),
        )
    return table


def _pair(category: Category, variant: str, baseline: str, metric: MetricInfo) -> Text:
    ends = (variant, baseline_of(baseline, variant))
    found = (each for each in category.differences if (each.variant, each.baseline) == ends)
    return show_difference(next((each for each in found if each.metric == metric.name), None), metric)
