"""`Comparison`: the outcome of a comparison, as a value that prints, saves and loads. Imports no torch."""

import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cachegraph import __version__
from cachegraph.common.atomic_write import write_atomically
from cachegraph.errors import ConfigError, InputError
from cachegraph.graph.data.examples import Example

from .environment import Environment
from .metrics import Unit
from .records import ExampleRecord, MemoryUse

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["AgentSummary", "Comparison", "Difference", "EdgeSummary", "Estimate", "MetricInfo", "Spread", "VariantRow"]


class Estimate(BaseModel):
    """A mean over examples and its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(BaseModel):
    """`variant` minus `baseline` in one metric, over the same examples."""

    variant: str
    baseline: str
    metric: str
    value: float
    low: float
    high: float
    p: float
    test: Literal["McNemar, exact", "paired bootstrap"]

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0 and p is below 0.05."""
        return (self.low > 0 or self.high < 0) and self.p < 0.05


class MetricInfo(BaseModel):
    """A metric and its unit: fractions that are shown as percentage points, nats, or plain numbers."""

    name: str
    unit: Unit


class Spread(BaseModel):
    """Seconds per example."""

    median: float
    mean: float


class AgentSummary(BaseModel):
    """One agent: means per example."""

    prefilled: float
    generated: float
    reused: float
    queued: float
    prefill: float
    transfer: float
    fuse: float
    decode: float


class EdgeSummary(BaseModel):
    """One edge: the requested channel, how often each channel was used, and means per example."""

    sender: str
    receiver: str
    asked: str
    used: dict[str, int]
    fallbacks: dict[str, int] = {}  # by reason
    bytes: float
    positions_fused: float
    positions_grafted: float


class VariantRow(BaseModel):
    """A table row. `why_not` says why the variant could not run. `same_as` names the row that it equals by definition.
    `mean_of` names the variants of which it is the mean, which differ in their fuser.

    `cache_share` is the fraction of deliveries with a cache on edges that asked for one; None without such edges.
    """

    name: str
    description: str
    recorded_as: str | None = None  # the variant of its records, if not its name
    same_as: str | None = None
    mean_of: tuple[str, ...] = ()
    why_not: str | None = None
    examples: int = 0
    groups: int | None = None  # groups that the examples form; None: they are independent
    failed: int = 0
    errors: dict[str, int] = {}
    quality: dict[str, Estimate] = {}
    seconds: Spread | None = None
    first_token: Spread | None = None
    agents: dict[str, AgentSummary] = {}
    edges: list[EdgeSummary] = []
    cache_share: float | None = None
    memory: MemoryUse = MemoryUse()

    @property
    def was_run(self) -> bool:
        """Whether the variant ran itself: it is not an alias or a mean of other rows."""
        return self.why_not is None and self.same_as is None and not self.mean_of


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
        found = (each for each in self.differences if (each.variant, each.baseline) == (variant, baseline))
        return next((each for each in found if each.metric == metric), None)

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

    def table(self) -> "Group":
        """Quality and cost by variant, for `rich.print`."""
        from .table import make_tables

        return make_tables(self)
