"""Render the page. All text is untrusted and escaped, except drawings and this package's own style and script."""

import base64
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import ValidationError

from cachegraph.errors import CachegraphError
from cachegraph.graph.draw.render import to_svg, to_text
from cachegraph.graph.recipe.spec import GraphSpec
from cachegraph.graph.recipe.yaml_positions import read_yaml

from ..comparison import Comparison
from . import charts, tables
from .costs import costs
from .layers import layers
from .questions import judge, pair, questions

__all__ = ["make_page"]

STATIC_ROWS = 200  # examples shown where scripts are blocked
DETAILS = (
    tables.edge_worths,
    tables.categories,
    tables.agreements,
    tables.agents,
    tables.edges,
    tables.other_differences,
)


def make_page(comparison: Comparison) -> str:
    """Return the whole report as HTML."""
    found = questions(comparison)
    script, style = _own("page.js"), _own("page.css")
    metric = judge(comparison)
    left, right = pair(comparison)
    names = found["variants"]
    text: str = _template().render(
        comparison=comparison,
        count=max((row.examples for row in comparison.rows), default=0),
        drawing=_drawing(comparison),
        charts=[*_charts(comparison), *costs(comparison)],
        layers=layers(comparison),
        tables=[make(comparison) for make in (tables.quality, tables.differences, tables.costs)],
        details=[table for make in DETAILS if (table := make(comparison)).rows],
        environment=tables.environment(comparison.environment, len(comparison.examples)),
        rule=_rule(metric.name) if metric is not None else None,
        found=found,
        static=found["rows"][:STATIC_ROWS],
        left=left,
        right=right,
        places=(names.index(left), names.index(right)) if names else (0, 0),
        data=_json({**found, "left": left, "right": right, "judged": metric is not None}),
        script=Markup(script),  # noqa: S704
        style=Markup(style),  # noqa: S704
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return text


def _charts(comparison: Comparison) -> Iterator[charts.Chart]:
    for place, metric in enumerate(comparison.metrics):
        chart = charts.quality(comparison, metric, f"quality{place}")
        if chart is not None:
            yield chart
        if not place and (time := charts.latency(comparison)) is not None:
            yield time
    if (parts := charts.breakdown(comparison)) is not None:
        yield parts


def _drawing(comparison: Comparison) -> dict[str, str] | None:
    """Return the graph as a separate image, which isolates its styles and scripts; None if it can't be drawn."""
    try:
        spec = GraphSpec.model_validate(read_yaml(comparison.recipe, "recipe").root.value, strict=True)
        svg = to_svg(spec)
    except (CachegraphError, ValidationError):
        return None
    return {"source": "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode(), "text": to_text(spec)}


def _rule(name: str) -> str:
    return "F1 of 0.5 or more" if name == "f1" else name.replace("_", " ")


def _json(value: Any) -> Markup:
    """Encode JSON for a script element, which an unescaped `<` might end."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704


@cache
def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")
