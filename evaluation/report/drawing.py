"""Convert a matplotlib figure to inline SVG: text stays text, and colours follow the page, light or dark."""

import re
import warnings
from io import StringIO
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["COLOURS", "PARTS", "canvas", "finish"]

# Colours stand for the variables of the page's stylesheet until the drawing is done.
COLOURS = {
    name: f"#fe{number:02x}01"
    for number, name in enumerate(
        ("ink", "soft", "rule", "ground", "main", "second", "queue", "prefill", "transfer", "fuse", "decode")
    )
}
PARTS = ("queue", "prefill", "transfer", "fuse", "decode")
VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # keep text as text
    "svg.hashsalt": "cachegraph",  # reproducible ids
    "text.parse_math": False,  # a name with dollars is not a formula
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["soft"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.unicode_minus": True,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "xtick.labelcolor": COLOURS["soft"],
    "ytick.labelcolor": COLOURS["ink"],
    "grid.color": COLOURS["rule"],
    "legend.frameon": False,
    "legend.labelcolor": COLOURS["ink"],
}


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty chart with this size in CSS pixels."""
    with rc_context(SETTINGS):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
    return figure, axes


def finish(figure: Figure, name: str, title: str) -> Markup:
    """Return the figure as an inline SVG with this title; `name` makes its ids unique on the page."""
    out = StringIO()
    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has the glyph
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _inline(out.getvalue(), name, title)


def _inline(svg: str, name: str, title: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(?<= style=")[^"]*', lambda match: _style(match[0]), svg)
    view = re.search(r'viewBox="[^"]*"', svg)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {view[0] if view else ""}'
    )
    label = Markup.escape(title)
    body = svg[svg.index(">") + 1 :]
    return Markup(f'{head} role="img" aria-label="{label}" stroke-linejoin="round">{body}')  # noqa: S704


def _style(style: str) -> str:
    for colour, variable in VARIABLES.items():
        style = style.replace(colour, variable)
    style = re.sub(r"\bfont: ?([\d.]+px)[^;]*", r"font-size: \1", style)
    return re.sub(r"\bfont-family:[^;]*;?", "", style)
