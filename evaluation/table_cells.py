"""Cells and frames of the terminal tables of a comparison."""

from collections.abc import Collection, Sequence

from rich.table import Table
from rich.text import Text

from .comparison import Difference, Estimate, MetricInfo

__all__ = ["corrected", "empty_table", "number", "show_difference", "show_estimate", "show_p", "show_ratio"]


def number(value: float, metric: MetricInfo, sign: bool = False) -> str:
    """A value or difference in its metric's unit: points with one decimal, other units with three."""
    shown = f"{value * 100:+.1f}" if metric.unit == "points" else f"{value:+.3f}"
    return shown if sign else shown.removeprefix("+")


def corrected(differences: Sequence[Difference]) -> str:
    """How p was corrected, for a sentence."""
    count = max((difference.comparisons for difference in differences), default=1)
    return f", corrected for {count} comparisons (Holm)," if count > 1 else ""


def empty_table(title: str | None, columns: Sequence[str], names: Collection[int] = (0,)) -> Table:
    """A table without rows. The columns `names` hold names, which stand on the left; numbers stand on the right."""
    table = Table(title=None if title is None else Text(title), title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index in names else "right", no_wrap=not index)
    return table


def show_estimate(estimate: Estimate | None, metric: MetricInfo) -> Text:
    """A value with its interval; empty without an estimate."""
    if estimate is None:
        return Text()
    low, high = number(estimate.low, metric), number(estimate.high, metric)
    return Text.assemble(f"{number(estimate.value, metric)} ", (f"({low} to {high})", "dim"))


def show_difference(difference: Difference | None, metric: MetricInfo) -> Text:
    """A difference with its interval, and a star if it is shown."""
    if difference is None:
        return Text()
    low, high = number(difference.low, metric, True), number(difference.high, metric, True)
    star = "*" if difference.shown else " "
    return Text.assemble(f"{number(difference.value, metric, True)} ", (f"({low} to {high})", "dim"), star)


def show_ratio(ratio: Estimate | None) -> str:
    """An odds ratio with its interval."""
    return "" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def show_p(value: float | None) -> str:
    """A p-value with three decimals."""
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
