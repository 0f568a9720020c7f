"""A comparison as flat rows, one for each record: for CSV files and data frames."""

import csv
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachegraph.common.atomic_write import write_atomically
from cachegraph.errors import ConfigError

from .metrics import choose

if TYPE_CHECKING:
    from cachegraph.graph.data.examples import Example

    from .comparison import Comparison
    from .records import ExampleRecord

__all__ = ["columns_of", "flat_rows", "write_csv"]

BEFORE = ("variant", "seed", "index", "id")
BEHIND = (
    "choice", "answer", "reply", "error", "seconds", "first_token",
    "prefilled", "generated", "reused", "bytes", "positions_fused", "positions_grafted",
)  # fmt: skip


def columns_of(comparison: "Comparison") -> list[str]:
    """The names of the columns. A metric's column has the metric's name, and `metric.NAME` if that name is taken."""
    optional = [name for name, given in (("group", _grouped(comparison)), ("category", comparison.by)) if given]
    return [*BEFORE, *optional, *_metric_columns(comparison).values(), *BEHIND]


def flat_rows(comparison: "Comparison") -> list[dict[str, Any]]:
    """A dict of `columns_of` for each record, in the order of variants, seeds and examples. Unknown values are None."""
    examples = {example.index: example for example in comparison.examples}
    return [
        _flat(comparison, row.name, record, examples[record.index])
        for row in comparison.rows
        if row.was_run
        for record in comparison.records_of(row.name)
    ]


def write_csv(comparison: "Comparison", path: Path) -> None:
    """Write the rows as CSV (UTF-8, with a header). Raises ConfigError."""
    text = StringIO(newline="")
    writer = csv.DictWriter(text, columns_of(comparison), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat_rows(comparison))
    try:
        write_atomically(path, text.getvalue())
    except OSError as error:
        raise ConfigError(f"the table can't be written to {str(path)!r}: {error.strerror or error}") from error


def _flat(comparison: "Comparison", variant: str, record: "ExampleRecord", example: "Example") -> dict[str, Any]:
    agents, reports = record.agents.values(), [edge.report for edge in record.edges]
    row: dict[str, Any] = {"variant": variant, "seed": record.seed, "index": record.index, "id": example.id}
    if _grouped(comparison):
        row["group"] = example.group
    if comparison.by is not None:
        row["category"] = comparison.by.values[record.index]
    row |= {column: record.metrics.get(name) for name, column in _metric_columns(comparison).items()}
    by_length = comparison.metrics[0].name == "accuracy_per_character"
    picked = choose(record.scores, by_length) if record.scores else None
    row |= {"choice": picked, "answer": example.answer, "reply": record.reply, "error": record.error}
    row |= {"seconds": record.seconds, "first_token": record.first_token}
    row |= {name: sum(getattr(agent.tokens, name) for agent in agents) for name in ("prefilled", "generated", "reused")}
    totals = ("bytes", "positions_fused", "positions_grafted")
    return row | {name: sum(getattr(report, name) for report in reports) for name in totals}


def _metric_columns(comparison: "Comparison") -> dict[str, str]:
    taken = {*BEFORE, *BEHIND, "group", "category"}
    names = [metric.name for metric in comparison.metrics]
    return {name: f"metric.{name}" if name in taken else name for name in names}


def _grouped(comparison: "Comparison") -> bool:
    return any(example.group is not None for example in comparison.examples)
