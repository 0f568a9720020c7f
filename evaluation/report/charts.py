"""Charts of the report: quality, latency, a breakdown of the time, and residuals per layer."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..comparison import AgentSummary, Comparison, Estimate, MetricInfo, VariantRow
from ..table import number
from .drawing import COLOURS, PARTS, canvas, finish
from .latency import complete, median_interval, seconds_of

__all__ = ["Chart", "breakdown", "latency", "quality"]

WIDE = 520
LINE = 30  # pixels of height per variant


class Chart(NamedTuple):
    """An SVG drawing, its heading, and a note on how to read it."""

    heading: str
    svg: Markup
    note: str
    wide: bool = False


def quality(comparison: Comparison, metric: MetricInfo, name: str) -> Chart | None:
    """Draw one metric of every variant with its interval."""
    rows = [row for row in _running(comparison) if metric.name in row.quality]
    if not rows:
        return None
    scale = 100 if metric.unit == "points" else 1
    figure, axes = canvas(WIDE, 62 + LINE * len(rows))
    _names(axes, [row.name for row in rows])
    for place, row in enumerate(rows):
        estimate = row.quality[metric.name]
        _point(axes, place, estimate, scale, "main", filled=True)
        label = f"{number(estimate.value, metric)} ({number(estimate.low, metric)} to {number(estimate.high, metric)})"
        axes.annotate(label, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=11)
    _room(axes, [row.quality[metric.name] for row in rows], metric)
    note = (
        "Means over examples, with 95 % intervals (bootstrap over examples, or over their groups where they have some)."
    )
    chance = _chance(comparison, metric)
    if chance is not None:
        axes.axvline(chance, color=COLOURS["soft"], linestyle=(0, (2, 3)), linewidth=1.2)
        note += f" The dotted line is what guessing gives, {chance:.1f} %."
    title = metric.name.replace("_", " ")
    axes.set_xlabel(
        title + {"points": ", % of examples" if _counts(metric) else ", %", "nats": ", nats"}.get(metric.unit, "")
    )
    axes.grid(axis="x")
    return Chart(title[0].upper() + title[1:], finish(figure, name, f"{title} by variant, with 95 % intervals"), note)


def latency(comparison: Comparison) -> Chart | None:
    """Draw the seconds to the end and to the first token of every variant."""
    rows, among = [row for row in comparison.rows if row.was_run], complete(comparison)
    if not rows:
        return None
    figure, axes = canvas(WIDE, 88 + LINE * len(rows))
    _names(axes, [row.name for row in rows])
    any_first = False
    for place, row in enumerate(rows):
        done = median_interval(seconds_of(comparison, row.name, lambda record: record.seconds, among))
        token = median_interval(seconds_of(comparison, row.name, lambda record: record.first_token, among))
        if done is not None:
            _point(axes, place - 0.14, done, 1, "main", filled=True)
            axes.annotate(
                f"{done.value:.3g} s", (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=11
            )
        if token is not None:
            _point(axes, place + 0.14, token, 1, "second", filled=False)
            any_first = True
    full_run = axes.errorbar([], [], fmt="o", color=COLOURS["main"], label="whole run")
    handles = [full_run]
    if any_first:
        handles.append(
            axes.errorbar([], [], fmt="o", color=COLOURS["second"], mfc=COLOURS["ground"], label="first token")
        )
    figure.legend(handles=handles, loc="outside upper left", ncols=2, labelcolor=COLOURS["ink"], frameon=False)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds an example")
    axes.grid(axis="x")
    note = "Medians over examples, with 95 % intervals."
    if comparison.environment.concurrency > 1:
        note += (
            f" {comparison.environment.concurrency} examples ran at a time, so waiting for each other is part of it."
        )
    return Chart("Time", finish(figure, "time", "Seconds by variant, with 95 % intervals"), note)


def breakdown(comparison: Comparison) -> Chart | None:
    """Draw the time of every agent and edge as stacked bars."""
    bars: list[tuple[str, Mapping[str, float]]] = []
    starts: list[int] = []
    for row in comparison.rows:
        if row.was_run:
            starts.append(len(bars))
            bars += [(f"{row.name}: {agent}", _spent(summary)) for agent, summary in row.agents.items()]
            bars += _edges(comparison, row)
    if not any(sum(spent.values()) for _, spent in bars):
        return None
    figure, axes = canvas(860, 96 + 21 * len(bars))
    _names(axes, [name for name, _ in bars])
    left = [0.0] * len(bars)
    for part in PARTS:
        wide = [spent.get(part, 0.0) for _, spent in bars]
        axes.barh(
            range(len(bars)), wide, left=left, height=0.66, label=part, color=COLOURS[part],
            edgecolor=COLOURS["ground"], linewidth=0.8,
        )  # fmt: skip
        left = [a + b for a, b in zip(left, wide, strict=True)]
    for start in starts[1:]:
        axes.axhline(start - 0.5, color=COLOURS["rule"], linewidth=0.8)
    figure.legend(loc="outside upper left", ncols=len(PARTS), labelcolor=COLOURS["ink"], frameon=False)
    axes.set_xlabel("seconds an example, mean")
    axes.grid(axis="x")
    note = "Agents that don't wait for each other run at the same time, so bars may add up to more than the run."
    if any(" → " in name for name, _ in bars):
        note += " An edge's time (sender → receiver) is part of its receiver's."
    return Chart(
        "Where the time goes",
        finish(figure, "parts", "Seconds by variant, agent and part of the work"),
        note,
        wide=True,
    )


def _running(comparison: Comparison) -> list[VariantRow]:
    return [row for row in comparison.rows if row.why_not is None and row.examples]


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [name if len(name) <= 44 else f"{name[:43]}…" for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def _point(axes: Axes, place: float, estimate: Estimate, scale: float, colour: str, *, filled: bool) -> None:
    value, low, high = (scale * coordinate for coordinate in (estimate.value, estimate.low, estimate.high))
    inside = COLOURS[colour] if filled else COLOURS["ground"]
    reach = [[max(value - low, 0)], [max(high - value, 0)]]
    axes.errorbar([value], [place], xerr=reach, fmt="o", color=COLOURS[colour], mfc=inside, ms=6.5, elinewidth=1.8)


def _room(axes: Axes, estimates: Sequence[Estimate], metric: MetricInfo) -> None:
    """Set few ticks, and a minimum range for percentages, so that tiny differences stay tiny."""
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if metric.unit == "points":
        low, high = (
            100 * min(estimate.low for estimate in estimates),
            100 * max(estimate.high for estimate in estimates),
        )
        axes.set_xlim(max(min(low - 4, 90), 0) - 1, min(max(high + 4, 10), 100) + 1)


def _counts(metric: MetricInfo) -> bool:
    return metric.name != "f1"


def _chance(comparison: Comparison, metric: MetricInfo) -> float | None:
    if metric.name not in ("accuracy", "accuracy_per_character"):
        return None
    counts = [len(example.choices) for example in comparison.examples if example.choices]
    return 100 * fmean(1 / count for count in counts) if counts else None


def _spent(agent: AgentSummary) -> Mapping[str, float]:
    return {
        "queue": agent.queued,
        "prefill": agent.prefill,
        "transfer": agent.transfer,
        "fuse": agent.fuse,
        "decode": agent.decode,
    }


def _edges(comparison: Comparison, row: VariantRow) -> list[tuple[str, Mapping[str, float]]]:
    among = complete(comparison)
    bars: list[tuple[str, Mapping[str, float]]] = []
    for edge in row.edges:
        reports = [
            report.seconds
            for record in comparison.records_of(row.name)
            if record.index in among and (report := record.edge(edge.sender, edge.receiver)) is not None
        ]
        spent = {"prefill": "sharer_prefill", "transfer": "transfer", "fuse": "fuse"}
        means = (
            {part: fmean(seconds.get(name, 0.0) for seconds in reports) for part, name in spent.items()}
            if reports
            else {}
        )
        if any(means.values()):
            bars.append((f"{row.name}: {edge.sender} → {edge.receiver}", means))
    return bars
