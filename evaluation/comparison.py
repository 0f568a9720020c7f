"""`Comparison`: the outcome of a comparison, as a value that prints, saves and loads. Imports no torch."""

import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cachegraph import __version__
from cachegraph.common.atomic_write import write_atomically
from cachegraph.errors import ConfigError, InputError
from cachegraph.graph.data.examples import Example

from .comparison_parts import (
    AgentSummary,
    Agreement,
    ByColumn,
    Category,
    Difference,
    EdgeCurve,
    EdgeSummary,
    EdgeWorth,
    Estimate,
    MetricInfo,
    Repeats,
    Spread,
    VariantRow,
)
from .environment import Environment
from .records import ExampleRecord

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Group

__all__ = [
    "AgentSummary",
    "Agreement",
    "ByColumn",
    "Category",
    "Comparison",
    "Difference",
    "EdgeCurve",
    "EdgeSummary",
    "EdgeWorth",
    "Estimate",
    "MetricInfo",
    "Repeats",
    "Spread",
    "VariantRow",
]


class Comparison(BaseModel):
    """Variants of one graph on the same examples. Verdicts are about the first metric."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    cachegraph_version: str = __version__
    graph: str
    recipe: str  # as YAML
    metrics: list[MetricInfo]
    rows: list[VariantRow]
    differences: list[Difference]
    agreements: list[Agreement] = []
    edges: list[EdgeWorth] = []  # if each edge was swapped alone
    costs: list[EdgeCurve] = []  # if `cachegraph plan` has measured this recipe's models on this machine
    by: ByColumn | None = None
    verdicts: list[str]
    warnings: list[str] = []  # reasons for doubt: training data, too few examples, metrics that disagree
    environment: Environment
    examples: list[Example]
    records: list[ExampleRecord]
    results_file: str | None = None

    def row(self, variant: str) -> VariantRow | None:
        """A variant's row."""
        return next((row for row in self.rows if row.name == variant), None)

    def difference(self, variant: str, baseline: str, metric: str | None = None) -> Difference | None:
        """`variant` minus `baseline`, by default in the first metric."""
        metric = metric or self.metrics[0].name
        matches = (
            difference
            for difference in self.differences
            if (difference.variant, difference.baseline) == (variant, baseline)
        )
        return next((difference for difference in matches if difference.metric == metric), None)

    def records_of(self, variant: str) -> list[ExampleRecord]:
        """The records that a variant shows, its own or another's; for a mean, those of all its parts."""
        row = self.row(variant)
        if row is not None and row.mean_of:
            return [record for part in row.mean_of for record in self.records_of(part)]
        name = (row.recorded_as or row.same_as or row.name) if row is not None else variant
        return [record for record in self.records if record.variant == name]

    def to_json(self, indent: int | None = None) -> str:
        """The whole comparison as JSON text."""
        return self.model_dump_json(by_alias=True, indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "this") -> "Comparison":
        """Read what `to_json` wrote. `where` names the source in messages. Raises InputError."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise InputError(f"{where} is not a comparison that cachegraph {__version__} can read ({why})") from error

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as JSON, atomically. Raises ConfigError."""
        try:
            write_atomically(Path(path), self.to_json())
        except OSError as error:
            raise ConfigError(f"the comparison can't be written to {str(path)!r}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Comparison":
        """Read what `save` wrote. Raises InputError."""
        try:
            return cls.from_json(Path(path).read_bytes(), repr(str(path)))
        except OSError as error:
            raise InputError(f"there is no comparison at {str(path)!r}: {error.strerror or error}") from error

    def summary(self) -> dict[str, object]:
        """The comparison without recipe, examples and records, as JSON-like values."""
        plain = json.loads(self.model_dump_json(by_alias=True, exclude={"examples", "records", "recipe"}))
        return dict(plain)

    def to_rows(self) -> list[dict[str, Any]]:
        """A flat row for each record: variant, seed, example, reply, metrics, times, tokens and bytes."""
        from .flat_rows import flat_rows

        return flat_rows(self)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write `to_rows` as CSV, atomically. Raises ConfigError."""
        from .flat_rows import write_csv

        write_csv(self, Path(path))

    def to_pandas(self) -> "DataFrame":
        """`to_rows` as a data frame. Raises ConfigError if pandas is not installed."""
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ConfigError("to_pandas needs pandas: pip install pandas; or use to_csv, or to_rows") from error
        from .flat_rows import columns_of

        return DataFrame(self.to_rows(), columns=columns_of(self))

    def table(self) -> "Group":
        """Quality and cost by variant, for `rich.print`."""
        from .table import make_tables

        return make_tables(self)
