"""Measured constants of models and edges, and curves through the measured points. No torch."""

from itertools import pairwise
from typing import Literal, NamedTuple

from pydantic import BaseModel

__all__ = ["Curve", "EdgeConstants", "Form", "ModelConstants", "Point"]

Form = Literal["graft", "translate", "fuse"]


class Point(NamedTuple):
    """Measured seconds at a size: a number of tokens, positions or rows."""

    size: float
    seconds: float


class Curve(BaseModel):
    """Seconds by size: straight lines between measured points, at least one, ordered by size.

    Below the first point the seconds are the first point's, since a step has a fixed cost. Behind the last point the
    last line continues, so a cost that grows faster is underestimated there.
    """

    points: tuple[Point, ...]

    def at(self, size: float) -> float:
        """Seconds at this size; none at 0."""
        first = self.points[0]
        if size <= 0:
            return 0.0
        if size <= first.size or len(self.points) == 1:
            return first.seconds
        for low, high in pairwise(self.points):
            if size <= high.size or high == self.points[-1]:
                return low.seconds + (high.seconds - low.seconds) * (size - low.size) / (high.size - low.size)
        raise AssertionError("the last pair of points ends the loop")

    @property
    def longest(self) -> float:
        """The largest measured size."""
        return self.points[-1].size

    def rate(self, size: float) -> float:
        """Size over seconds."""
        return size / self.at(size)


class ModelConstants(BaseModel):
    """One model on one machine.

    `prefill` is by tokens of one prompt, `step` by rows that decode together, per token of each. `chat_tokens` are what
    the chat template adds to a prompt, `system_tokens` to one with a system message.
    """

    name: str
    dtype: str
    device: str
    prefill: Curve
    step: Curve
    bytes_per_position: float
    characters_per_token: float
    chat_tokens: int
    system_tokens: int
    measured: str  # date

    def tokens(self, characters: float) -> float:
        """The tokens of a text of this length, by the ratio of an English text."""
        return characters / self.characters_per_token

    def prefill_behind(self, tokens: float, past: float) -> float:
        """Seconds to prefill tokens behind cached positions: the longer prompt's seconds without the shorter's."""
        if tokens <= 0:
            return 0.0
        return max(self.prefill.at(past + tokens) - self.prefill.at(past), self.prefill.at(tokens))


class EdgeConstants(BaseModel):
    """A cache edge between two models, by positions that it carries.

    `move` is the seconds at the receiver for one edge: align, rotate, translate or fuse. `sharer_prefill` is the
    sharer's prefill of what the edge reads, with only the layers that it needs. `bytes_per_position` is what the edge
    hands over: 0 for a fuser that reads the receiver's prompt in place.
    """

    form: Form
    sharer: str
    receiver: str
    fuser: str | None = None
    move: Curve
    sharer_prefill: Curve
    bytes_per_position: float
    measured: str
