"""Tables of the report: all numbers, of which a terminal shows a part."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cachegraph.common.human import format_bytes

from ..comparison import Comparison, Difference, Estimate, MetricInfo, VariantRow
from ..environment import Environment
from ..table_cells import number, show_p, show_ratio

__all__ = [
    "Cell",
    "Table",
    "agents",
    "agreements",
    "categories",
    "costs",
    "differences",
    "edge_worths",
    "edges",
    "environment",
    "other_differences",
    "quality",
]


class Cell(NamedTuple):
    """Text of a cell, and the number that sorts it; None: sort as text."""

    text: str
    value: float | None = None


class Table(NamedTuple):
    """Column titles and rows; the first cell of a row is its name."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


EMPTY = Cell("–")


def quality(comparison: Comparison) -> Table:
    """Return the table of every metric of every variant."""
    rows = []
    for row in comparison.rows:
        name = Cell(row.name + (f" = {row.same_as}" if row.same_as else ""))
        about = Cell(row.description if row.why_not is None else f"not available: {row.why_not}")
        counts = [Cell(str(row.examples), row.examples), Cell(str(row.failed), row.failed)]
        rows.append([name, about, *(_estimate(row.quality.get(m.name), m) for m in comparison.metrics), *counts])
    columns = ["variant", "what it is", *map(_title, comparison.metrics), "examples", "failed"]
    return Table("Quality: means over examples, with 95 % intervals", columns, rows)


def differences(comparison: Comparison) -> Table:
    """Return the table of differences between variants and baselines, in the first metric."""
    return _differences(f"Differences in {_title(comparison.metrics[0])}, over the same examples", comparison, slice(1))


def other_differences(comparison: Comparison) -> Table:
    """Return the table of differences in all other metrics."""
    return _differences("Differences in the other metrics", comparison, slice(1, None))


def _differences(caption: str, comparison: Comparison, which: slice) -> Table:
    metrics = {metric.name: metric for metric in comparison.metrics[which]}
    rows = [
        _difference(difference, metrics[difference.metric])
        for difference in comparison.differences
        if difference.metric in metrics
    ]
    columns = [
        "variant", "minus", "metric", "difference", "95 % interval", "p", "p, Holm",
        "test", "Cohen's h", "odds ratio", "d", "detectable", "shown",
    ]  # fmt: skip
    return Table(caption, columns, rows)


def costs(comparison: Comparison) -> Table:
    """Return the table of costs per example of every variant."""
    rows = [[Cell(row.name), *_cost(row)] for row in _measured(comparison)]
    columns = [
        "variant", "median s", "mean s", "first token, median s", "tokens prefilled", "tokens generated",
        "decoding, tokens/s",
        "positions reused", "sent", "journeys by cache", "peak memory",
    ]  # fmt: skip
    return Table("Cost: an example of each variant", columns, rows)


def agents(comparison: Comparison) -> Table:
    """Return the table of tokens and seconds of every agent."""
    rows = []
    for row in _measured(comparison):
        for name, agent in row.agents.items():
            tokens = [_count(value) for value in (agent.prefilled, agent.generated, agent.reused)]
            seconds = [
                _seconds(value) for value in (agent.queued, agent.prefill, agent.transfer, agent.fuse, agent.decode)
            ]
            rows.append([Cell(row.name), Cell(name), *tokens, *seconds])
    columns = [
        "variant", "agent", "prefilled", "generated", "reused",
        "queue s", "prefill s", "transfer s", "fuse s", "decode s",
    ]  # fmt: skip
    return Table("Agents: tokens and mean seconds an example", columns, rows)


def edges(comparison: Comparison) -> Table:
    """Return the table of requested and used channels of every edge."""
    rows, text = [], comparison.row("text")
    for row in _measured(comparison):
        for edge in row.edges:
            used = ", ".join(f"{name} {count}" for name, count in edge.used.items())
            why = "; ".join(f"{reason} ({count})" for reason, count in edge.fallbacks.items())
            positions = [_count(edge.positions_fused), _count(edge.positions_grafted)]
            sent = Cell(format_bytes(edge.bytes), edge.bytes)
            words = text.edge(edge.sender, edge.receiver) if text is not None else None
            per_position = EMPTY if edge.bytes_per_position is None else _count(edge.bytes_per_position)
            as_text = EMPTY if words is None else Cell(format_bytes(words.bytes), words.bytes)
            way = Cell(f"{edge.sender} → {edge.receiver}")
            rows.append(
                [
                    Cell(row.name),
                    way,
                    Cell(edge.asked),
                    Cell(used),
                    sent,
                    as_text,
                    per_position,
                    *positions,
                    Cell(why or "–"),
                ]
            )
    columns = [
        "variant", "edge", "asked", "used", "sent", "sent as text", "bytes a position", "positions fused",
        "positions grafted", "fell back because",
    ]  # fmt: skip
    return Table("Edges: means an example", columns, rows)


def categories(comparison: Comparison) -> Table:
    """Every variant in every category."""
    metrics, by = comparison.metrics, comparison.by
    rows = []
    for category in by.categories if by is not None else ():
        count = Cell(str(category.examples), category.examples)
        for name, quality in category.quality.items():
            values = (_estimate(quality.get(metric.name), metric) for metric in metrics)
            rows.append([Cell(category.name), count, Cell(name), *values])
    column = by.column if by is not None else ""
    return Table(f"Quality by {column}", [column, "examples", "variant", *map(_title, metrics)], rows)


def agreements(comparison: Comparison) -> Table:
    """How alike the output agent judges the choices with the text and with the cache."""
    share, nats = MetricInfo(name="same choice", unit="points"), MetricInfo(name="KL", unit="nats")
    rows = [
        [
            Cell(agreement.variant),
            _estimate(agreement.same_choice, share),
            _estimate(agreement.kl, nats),
            _count(agreement.examples),
        ]
        for agreement in comparison.agreements
    ]
    columns = ["variant", "same choice as text %", "KL(text, variant), nats", "examples"]
    return Table("Agreement with text: the distributions over the choices", columns, rows)


def edge_worths(comparison: Comparison) -> Table:
    """Which edges are worth a cache, each swapped alone."""
    rows = []
    for edge in comparison.edges:
        seconds = EMPTY if edge.seconds is None else Cell(f"{edge.seconds.value:+.3f}", edge.seconds.value)
        prefilled = EMPTY if edge.prefilled is None else Cell(f"{edge.prefilled:+,.0f}", edge.prefilled)
        rows.append([Cell(edge.name), Cell(edge.worth), seconds, prefilled, Cell(edge.why)])
    columns = ["edge", "its cache", "seconds, minus text", "tokens prefilled, minus text", "why"]
    return Table("Each edge alone: is it worth a cache?", columns, rows)


def environment(environment: Environment, rows: int) -> list[tuple[str, str]]:
    """Return the (name, value) pairs that a repetition needs."""
    versions = {"cachegraph": environment.cachegraph, "Python": environment.python, **environment.versions}
    models = [
        f"{model.agent}: {model.name}"
        + "".join(f", {detail}" for detail in (model.weights, model.dtype, model.device, model.identity) if detail)
        for model in environment.models
    ]
    listed: list[tuple[str, Any]] = [
        ("command", environment.command),
        ("started", environment.started),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("system", environment.system),
        ("processor", f"{environment.processor}, {environment.cores} cores, {environment.threads} threads"),
        ("memory", format_bytes(environment.memory_bytes) if environment.memory_bytes else ""),
        ("GPUs", ", ".join(environment.gpus) or "none"),
        ("models by agent", "\n".join(models)),
        ("data", f"{environment.data}, {rows} of {environment.rows} rows"),
        ("data hash", environment.data_hash),
        ("recipe hash", environment.recipe_hash),
        ("seeds", ", ".join(map(str, environment.seeds))),
        ("examples at a time", str(environment.concurrency)),
        ("comparison", environment.key),
    ]
    return [(name, value) for name, value in listed if value]


def _measured(comparison: Comparison) -> list[VariantRow]:
    return [row for row in comparison.rows if row.was_run]


def _title(metric: MetricInfo) -> str:
    return metric.name.replace("_", " ") + {"points": " %", "nats": ", nats"}.get(metric.unit, "")


def _estimate(estimate: Estimate | None, metric: MetricInfo) -> Cell:
    if estimate is None:
        return EMPTY
    ends = f"{number(estimate.low, metric)} to {number(estimate.high, metric)}"
    return Cell(f"{number(estimate.value, metric)} ({ends})", estimate.value)


def _difference(difference: Difference, metric: MetricInfo) -> list[Cell]:
    ends = f"{number(difference.low, metric, True)} to {number(difference.high, metric, True)}"
    return [
        Cell(difference.variant),
        Cell(difference.baseline),
        Cell(_title(metric)),
        Cell(number(difference.value, metric, True), difference.value),
        Cell(ends, difference.low),
        Cell(show_p(difference.p), difference.p),
        EMPTY if difference.p_corrected is None else Cell(show_p(difference.p_corrected), difference.p_corrected),
        Cell(difference.test),
        _effect(difference.cohens_h),
        EMPTY
        if difference.odds_ratio is None
        else Cell(show_ratio(difference.odds_ratio), difference.odds_ratio.value),
        _effect(difference.standardised),
        EMPTY if difference.detectable is None else Cell(number(difference.detectable, metric), difference.detectable),
        Cell("yes" if difference.shown else "no"),
    ]


def _effect(value: float | None) -> Cell:
    return EMPTY if value is None else Cell(f"{value:+.2f}", value)


def _cost(row: VariantRow) -> list[Cell]:
    every = row.agents.values()
    seconds = [(row.seconds.median, row.seconds.mean)] if row.seconds else [(None, None)]
    share = EMPTY if row.cache_share is None else Cell(f"{row.cache_share:.0%}", row.cache_share)
    sent = sum(edge.bytes for edge in row.edges)
    memory = row.memory.gpu or row.memory.rss
    return [
        *map(_seconds, seconds[0]),
        _seconds(row.first_token.median if row.first_token else None),
        *(_count(sum(getattr(agent, name) for agent in every)) for name in ("prefilled", "generated")),
        EMPTY if row.tokens_per_second is None else _count(row.tokens_per_second),
        _count(sum(agent.reused for agent in every)),
        Cell(format_bytes(sent), sent),
        share,
        Cell(format_bytes(memory) + (" GPU" if row.memory.gpu else ""), memory),
    ]


def _seconds(value: float | None) -> Cell:
    return EMPTY if value is None else Cell(f"{value:.3f}", value)


def _count(value: float) -> Cell:
    return Cell(f"{value:,.1f}".removesuffix(".0"), value)
