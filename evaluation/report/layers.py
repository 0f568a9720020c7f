"""Chart of fusers per layer: open gates, and the size of residuals."""

from statistics import fmean

from matplotlib.ticker import MaxNLocator

from ..comparison import Comparison, VariantRow
from .charts import Chart
from .drawing import COLOURS, canvas, finish
from .latency import complete

__all__ = ["layers"]

Sizes = dict[int, tuple[list[float], list[float]]]  # per receiver layer, of keys and values; empty: a closed gate


def layers(comparison: Comparison) -> list[Chart]:
    """Draw each fused edge of the first variant that has one."""
    for row in comparison.rows:
        found = [_edge(comparison, row, edge.sender, edge.receiver) for edge in row.edges if row.was_run]
        if charts := [
            _chart(row, name, sizes, f"layers{number}") for number, (name, sizes) in enumerate(found) if sizes
        ]:
            return charts
    return []


def _edge(comparison: Comparison, row: VariantRow, sender: str, receiver: str) -> tuple[str, Sizes]:
    among = complete(comparison)
    sizes: Sizes = {}
    for record in comparison.records_of(row.name):
        report = record.edge(sender, receiver)
        if report is None or record.index not in among:
            continue
        for layer, pair in report.residuals.items():
            both = sizes.setdefault(layer, ([], []))
            for values, value in zip(both, pair, strict=True):
                if value is not None:
                    values.append(value)
    return f"{sender} → {receiver}", dict(sorted(sizes.items()))


def _chart(row: VariantRow, name: str, sizes: Sizes, ids: str) -> Chart:
    figure, axes = canvas(520, 260)
    marks = (("keys", "o", "main", -0.18), ("values", "s", "second", 0.18))
    for place, (what, mark, colour, aside) in enumerate(marks):
        opened = [(layer, fmean(pair[place])) for layer, pair in sizes.items() if pair[place]]
        axes.vlines(
            [layer + aside for layer, _ in opened], 0, [value for _, value in opened], color=COLOURS[colour], lw=1.6
        )
        axes.plot(
            [layer + aside for layer, _ in opened], [value for _, value in opened], mark,
            color=COLOURS[colour], ms=5, label=f"{what}, gate open",
        )  # fmt: skip
        closed = [layer + aside for layer, pair in sizes.items() if not pair[place]]
        axes.plot(
            closed,
            [0.0] * len(closed),
            "x",
            color=COLOURS["soft"],
            ms=5,
            clip_on=False,
            label=None if place else "gate closed",
        )
    figure.legend(loc="outside upper left", ncols=3, labelcolor=COLOURS["ink"], frameon=False)
    axes.set_ylim(bottom=0)
    axes.set_xlim(min(sizes) - 0.8, max(sizes) + 0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("receiver layer")
    axes.set_ylabel("correction / what was there")
    axes.grid(axis="y")
    note = (
        f"{row.name}, {_count(sizes)}. The size (L2) of what the fuser adds at fused positions, as a part of "
        "the receiver's own keys or values there, the mean over examples."
    )
    return Chart(name, finish(figure, ids, f"Corrections of {name} by layer"), note)


def _count(sizes: Sizes) -> str:
    opened = sum(bool(values) for pair in sizes.values() for values in pair)
    return f"{opened} of {2 * len(sizes)} gates open in {len(sizes)} fused layers"
