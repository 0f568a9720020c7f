"""Charts of predicted costs: where a cache is faster than text, by length of the document."""

from matplotlib.ticker import FuncFormatter

from ..comparison import Comparison, EdgeCurve
from .charts import Chart
from .drawing import COLOURS, canvas, finish

__all__ = ["costs"]


def costs(comparison: Comparison) -> list[Chart]:
    """A chart of each kind of cache edge whose constants were measured on this machine."""
    return [_chart(curve, f"costs{number}") for number, curve in enumerate(comparison.costs)]


def _chart(curve: EdgeCurve, ids: str) -> Chart:
    figure, axes = canvas(520, 260)
    for name, seconds, colour in (("text", curve.text, "second"), (f"cache, {curve.form}", curve.cache, "main")):
        axes.plot(curve.tokens, seconds, color=COLOURS[colour], label=name, lw=1.8)
    axes.axvline(curve.longest_measured, color=COLOURS["soft"], linestyle=(0, (2, 3)), linewidth=1.2)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlim(curve.tokens[0], curve.tokens[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens of the document")
    axes.set_ylabel("predicted seconds")
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=2, labelcolor=COLOURS["ink"], frameon=False)
    receivers = f"{curve.receivers} receiver{'' if curve.receivers == 1 else 's'}"
    note = (
        f"Predicted from constants that `cachegraph plan` measured on this machine, for {receivers}; not a result of "
        f"this comparison. Behind the dotted line ({curve.longest_measured:,} tokens) the prefill is extrapolated."
    )
    return Chart(f"Cost of {curve.edge}", finish(figure, ids, f"Predicted seconds of {curve.edge} by length"), note)
