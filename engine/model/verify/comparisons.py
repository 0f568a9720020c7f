"""Compares logits of the probe rows with the model's own, and keeps a record of each comparison."""

from collections.abc import Sequence

from torch import Tensor

from .probe import ProbeRow, Results, relative_difference
from .verdict import OutputComparison

__all__ = ["EXACT", "ROUNDED", "Comparisons", "OutputMismatch"]

# How far logits may differ, as a share of the expected ones' norm.
EXACT = 0.001  # if both ways compute in float32
ROUNDED = 0.05  # if weights have fewer bits, and each way may round the activations that meet them


class OutputMismatch(Exception):
    """Raised where a comparison fails."""


class Comparisons:
    """The comparisons of one model's verification. `limit` is how far logits may differ where torch computes them."""

    def __init__(self, rows: Sequence[ProbeRow], exact: bool):
        self.rows = rows
        self.limit = EXACT if exact else ROUNDED
        self.expected: list[list[Tensor]] = []  # as `Results.logits`, by the model's own forward pass
        self.made: list[OutputComparison] = []

    def compare_logits(self, how: str, results: Results, limit: float) -> None:
        """Compare the rows' logits with the expected. Raises OutputMismatch if they differ by more than `limit`."""
        for index, row in enumerate(self.rows):
            error = relative_difference(results.logits[index], self.expected[index])
            self.note(_words(row, index) + how, error, limit)

    def note(self, what: str, error: float, limit: float) -> None:
        """Record a comparison. Raises OutputMismatch if it fails."""
        self.made.append(made := OutputComparison(what, error, limit))
        if not made.passed:
            raise OutputMismatch(what)


def _words(row: ProbeRow, index: int) -> str:
    if index > 1:
        return f"a row at position {row.start}, and a token behind it"
    return "a shorter row beside it" if index else "a prompt in two pieces, and two tokens behind it"
