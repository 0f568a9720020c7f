"""From which length, number of receivers and bandwidth a cache edge beats text. No torch."""

import math
from collections.abc import Sequence
from dataclasses import replace

from pydantic import BaseModel

from ..comparison_parts import EdgeCurve
from .constants import Form
from .predict import CostSetting, predict
from .shape import Shape, ShapeEdge, TurnShape

__all__ = ["RECEIVERS", "BreakEven", "break_even", "curve", "star"]

RECEIVERS = (1, 2, 4, 8)
SHORTEST, LONGEST = 16, 4096  # tokens of the document
STEPS = 36  # lengths on a geometric scale between them


class BreakEven(BaseModel):
    """Between `shortest` and `longest` tokens of the document the cache is faster than text; None: at no length.

    The lengths that were tried lie between SHORTEST and LONGEST.

    At the given length a run takes `cache` and `text` seconds in memory. `bandwidth` is then the least, in bytes
    a second, at which the cache still wins; None: it doesn't.
    """

    form: Form
    edge: str
    receivers: int
    shortest: int | None
    longest: int | None
    cache: float
    text: float
    bandwidth: float | None


def star(shape: Shape, edge: ShapeEdge, receivers: int) -> Shape:
    """One sender of the recipe, and a number of copies of one of its receivers, each with that edge alone."""
    sender, receiver = shape.turn(edge.sender), shape.turn(edge.receiver)
    first = replace(sender, level=0)
    if not sender.documents and not receiver.documents:
        first = replace(first, own=0.0, documents=1.0)  # its prompt is what grows
    names = [f"{receiver.name} {number}" for number in range(1, receivers + 1)]
    copies = tuple(replace(receiver, name=name, level=1) for name in names)
    edges = tuple(replace(edge, receiver=name) for name in names)
    turns: tuple[TurnShape, ...] = (first, *copies)
    return Shape(turns, edges, frozenset(names), shape.document, shape.length)


def break_even(shape: Shape, edge: ShapeEdge, setting: CostSetting, receivers: int, length: float) -> BreakEven | None:
    """Compare a cache edge with text. `length` is the document's, in characters. None without constants."""
    graph = star(shape, edge, receivers)
    sharer = setting.models.get(graph.turns[0].model or "")
    if edge.form is None or sharer is None or predict(graph, setting).unknown:
        return None
    smooth = replace(setting, smooth=True)
    faster = [
        predict(graph, smooth, length).seconds < predict(graph.over_text(), smooth, length).seconds
        for length in (tokens * sharer.characters_per_token for tokens in _lengths())
    ]
    local = replace(setting, bandwidth=None)
    cache, text = predict(graph, local, length), predict(graph.over_text(), local, length)
    shortest, longest = _first_stretch(faster)
    saved = text.seconds - cache.seconds
    more = cache.bytes - text.bytes
    return BreakEven(
        form=edge.form,
        edge=edge.name,
        receivers=receivers,
        shortest=shortest,
        longest=longest,
        cache=cache.seconds,
        text=text.seconds,
        bandwidth=max(more, 0.0) / saved if saved > 0 else None,
    )


def curve(shape: Shape, edge: ShapeEdge, setting: CostSetting, receivers: int) -> EdgeCurve | None:
    """Seconds over text and over cache by length. None without constants for the edge."""
    graph = star(shape, edge, receivers)
    sharer = setting.models.get(graph.turns[0].model or "")
    if edge.form is None or sharer is None or predict(graph, setting).unknown:
        return None
    smooth = replace(setting, smooth=True)
    lengths = [(tokens, tokens * sharer.characters_per_token) for tokens in _lengths()]
    return EdgeCurve(
        form=edge.form,
        edge=edge.name,
        receivers=receivers,
        tokens=[tokens for tokens, _ in lengths],
        cache=[predict(graph, smooth, length).seconds for _, length in lengths],
        text=[predict(graph.over_text(), smooth, length).seconds for _, length in lengths],
        longest_measured=int(sharer.prefill.longest),
    )


def _lengths() -> list[int]:
    ratio = math.log(LONGEST / SHORTEST) / STEPS
    return [round(SHORTEST * math.exp(ratio * step)) for step in range(STEPS + 1)]


def _first_stretch(faster: Sequence[bool]) -> tuple[int | None, int | None]:
    """The first and the last length of the first stretch in which the cache is faster."""
    lengths = _lengths()
    if True not in faster:
        return None, None
    first = faster.index(True)
    behind = [place for place in range(first, len(faster)) if not faster[place]]
    return lengths[first], lengths[(behind[0] if behind else len(faster)) - 1]
