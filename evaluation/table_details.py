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
    differences = [
        difference
        for difference in comparison.differences
        if difference.metric == metric.name
        and Name.parse(difference.variant).kind in CACHED
        and difference.variant not in aliases
    ]
    if not differences:
        return None
    counts = any(difference.odds_ratio is not None for difference in differences)
    binary = any(difference.cohens_h is not None for difference in differences)
    effects = [*(["Cohen's h"] if binary else ["d"]), *(["odds ratio"] if counts else [])]
    table = empty_table(None, ["variant", "minus", "p", "p, Holm", *effects, "detectable"], (0, 1))
    for difference in differences:
        effect = difference.cohens_h if binary else difference.standardised
        ratio = [] if not counts else [show_ratio(difference.odds_ratio)]
        table.add_row(
            Text(difference.variant),
            Text(difference.baseline),
            show_p(difference.p),
            show_p(difference.p_corrected),
            "" if effect is None else f"{effect:+.2f}",
            *ratio,
            "" if difference.detectable is None else number(difference.detectable, metric),
        )
    table.caption = "detectable: the smallest difference that as many examples show with 80 % power"
    table.caption_justify = "left"
    return table


def category_table(comparison: Comparison) -> Table | None:
    """The first metric of every variant in every category."""
    by, metric = comparison.by, comparison.metrics[0]
    if by is None:
        return None
    baselines = [name for name in ("text", "mismatched") if any(name in category.quality for category in by.categories)]
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
    shown = [difference for category in by.categories for difference in category.differences]
    if any(difference.shown and difference.metric == metric.name for difference in shown):
        table.caption = f"* the interval excludes 0 and p{corrected(shown)} is below 0.05"
        table.caption_justify = "left"
    return table


def agreement_table(comparison: Comparison) -> Table | None:
    """How alike the choices are judged with the text and with the cache."""
    if not comparison.agreements:
        return None
    share, nats = MetricInfo(name="same_choice", unit="points"), MetricInfo(name="kl", unit="nats")
    table = empty_table(None, ["variant", "same choice as text %", "KL(text, variant), nats"])
    for agreement in comparison.agreements:
        table.add_row(
            Text(agreement.variant), show_estimate(agreement.same_choice, share), show_estimate(agreement.kl, nats)
        )
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
        per_position = edge.bytes_per_position
        table.add_row(
            Text(row.name),
            Text(f"{edge.sender} → {edge.receiver}"),
            format_bytes(edge.bytes),
            f"{edge.positions_fused + edge.positions_grafted:.0f}",
            "" if per_position is None else f"{per_position:,.0f}",
            "" if words is None else format_bytes(words.bytes),
        )
    return table


def _pair(category: Category, variant: str, baseline: str, metric: MetricInfo) -> Text:
    ends = (variant, baseline_of(baseline, variant))
    matches = (difference for difference in category.differences if (difference.variant, difference.baseline) == ends)
    return show_difference(
        next((difference for difference in matches if difference.metric == metric.name), None), metric
    )
