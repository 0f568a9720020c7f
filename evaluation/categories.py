"""Results by category: the values of one column of the data."""

from collections.abc import Mapping, Sequence

from cachegraph.errors import InputError
from cachegraph.graph.data.dataset import RawExample
from cachegraph.graph.data.examples import SHOWN, Example, column_value, is_blank

from .comparison import ByColumn, Category
from .differences import correct
from .metrics import Metric
from .records import ExampleRecord
from .summary import summarise
from .variants import Variant

__all__ = ["by_category", "category_of_rows"]

MOST = 50  # categories
EMPTY = "(empty)"


def category_of_rows(rows: Sequence[RawExample], column: str) -> list[str]:
    """The value of `column` in each row, as text. Raises one InputError with the first few rows that lack one."""
    values: list[str] = []
    problems: list[str] = []
    for row in rows:
        try:
            values.append(_category(row, column))
        except InputError as error:
            problems.append(f"{row.place}: {error}")
    if problems:
        more = f"\n(and {len(problems) - SHOWN} more rows)" if len(problems) > SHOWN else ""
        raise InputError("\n".join(problems[:SHOWN]) + more)
    if (count := len(set(values))) > MOST:
        raise InputError(
            f"column {column!r} has {count} different values in {len(rows)} rows; choose a column with at most {MOST} "
            "to compare by"
        )
    return values


def by_category(
    column: str,
    values: Mapping[int, str],
    variants: Sequence[Variant],
    records: Sequence[ExampleRecord],
    examples: Sequence[Example],
    metrics: Sequence[Metric],
    seed: int,
) -> ByColumn:
    """Estimates and differences of each category, in the order of the data; p is corrected over all of them."""
    names = list(dict.fromkeys(values[example.index] for example in examples))
    categories: list[Category] = []
    recorded: dict[str, str] = {}
    for name in names:
        inside = [example for example in examples if values[example.index] == name]
        indices = {example.index for example in inside}
        own = [record for record in records if record.index in indices]
        summary = summarise(variants, own, inside, metrics, seed, parts=len(names))
        running = [row for row in summary.rows if row.why_not is None]
        recorded |= {row.name: row.same_as or row.name for row in running}
        categories.append(
            Category(
                name=name,
                examples=max((row.examples for row in running), default=0),
                groups=next((row.groups for row in running if row.groups is not None), None),
                quality={row.name: row.quality for row in running if row.quality},
                differences=summary.differences,
            )
        )
    correct([category.differences for category in categories], recorded)
    return ByColumn(column=column, values=dict(values), categories=categories)


def _category(row: RawExample, column: str) -> str:
    value = column_value(row, column, "the categories")
    if is_blank(value):
        return EMPTY
    if not isinstance(value, str | int | float):
        raise InputError(f"column {column!r} must hold a text, a number or true and false, not {type(value).__name__}")
    return str(value)
