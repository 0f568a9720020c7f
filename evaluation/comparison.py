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

from .environment import Environment
from .metrics import Unit
from .records import ExampleRecord, MemoryUse

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
    "EdgeSummary",
    "Estimate",
    "MetricInfo",
    "Repeats",
    "Spread",
    "VariantRow",
]


class Estimate(BaseModel):
    """A mean over examples and its 95 % interval."""

    model_config = ConfigDict(ser_json_inf_nan="strings")  # an odds ratio may be infinite

    value: float
    low: float
    high: float


class Difference(BaseModel):
    """`variant` minus `baseline` in one metric, over the same examples.

    `p_corrected` is p after Holm's correction for all `comparisons` of the metric. `odds_ratio` is of matched pairs,
    where McNemar's test applies; `standardised` is the mean difference over its standard deviation, elsewhere.
    `detectable` is the smallest difference that as many examples show with 80 % power; None if it can't be told.
    """

    variant: str
    baseline: str
    metric: str
    value: float
    low: float
    high: float
    p: float
    test: Literal["McNemar, exact", "paired bootstrap"]
    p_corrected: float | None = None
    comparisons: int = 1
    cohens_h: float | None = None
    odds_ratio: Estimate | None = None
    standardised: float | None = None
    detectable: float | None = None

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0 and p, corrected for the number of comparisons, is below 0.05."""
        return (self.low > 0 or self.high < 0) and (self.p if self.p_corrected is None else self.p_corrected) < 0.05


class MetricInfo(BaseModel):
    """A metric and its unit: fractions that are shown as percentage points, nats, or plain numbers."""

    name: str
    unit: Unit


class Spread(BaseModel):
    """Seconds per example."""

    median: float
    mean: float


class Repeats(BaseModel):
    """A metric's mean in each repetition: by seed, or by fuser for a mean over fusers; and their standard deviation."""

    values: dict[str, float]
    deviation: float


class Agreement(BaseModel):
    """How alike the output agent judges the choices in two variants, over `examples`.

    `same_choice` is the share of examples on which both prefer the same choice. `kl` is the mean divergence
    KL(baseline || variant) in nats between the two distributions over the choices.
    """

    variant: str
    baseline: str
    examples: int
    same_choice: Estimate
    kl: Estimate


class Category(BaseModel):
    """The examples with one value in the column of `--by`: estimates by variant and metric, and differences."""

    name: str
    examples: int
    groups: int | None = None
    quality: dict[str, dict[str, Estimate]] = {}
    differences: list[Difference] = []


class ByColumn(BaseModel):
    """A comparison by the values of a column of the data. `values` maps an example's index to its value."""

    column: str
    values: dict[int, str]
    categories: list[Category]


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

    @property
    def bytes_per_position(self) -> float | None:
        """Bytes for each position that was fused or grafted. None if no cache arrived."""
        positions = self.positions_fused + self.positions_grafted
        return self.bytes / positions if positions else None


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
    repeats: dict[str, Repeats] = {}  # by metric, if there are several seeds or fusers
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

    @property
    def tokens_per_second(self) -> float | None:
        """Decoded tokens of all agents over the seconds that they decoded. None if nothing was decoded."""
        generated, seconds = (sum(getattr(each, of) for each in self.agents.values()) for of in ("generated", "decode"))
        return generated / seconds if generated and seconds else None

    def edge(self, sender: str, receiver: str) -> EdgeSummary | None:
        """The summary of an edge, if it carried something."""
        return next((each for each in self.edges if (each.sender, each.receiver) == (sender, receiver)), None)


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
