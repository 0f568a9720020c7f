"""The parts of a comparison: estimates, differences, agreements, and the rows of its tables. No torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from .metrics import Unit
from .records import MemoryUse

__all__ = [
    "AgentSummary",
    "Agreement",
    "ByColumn",
    "Category",
    "Difference",
    "EdgeCurve",
    "EdgeSummary",
    "EdgeWorth",
    "Estimate",
    "MetricInfo",
    "Repeats",
    "Spread",
    "VariantRow",
    "Worth",
]

Worth = Literal["better", "faster", "no gain", "not used", "worse", "unknown", "text only"]


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


class EdgeWorth(BaseModel):
    """One edge with a cache, and text on all others, against text on every edge.

    `worth` is `better` or `faster` for an edge that is worth a cache; `why` is its reason, with the numbers. `seconds`
    and `prefilled` are the differences of a run; `bytes` are what the edge sent, and `bytes_as_text` as text.
    """

    sender: str
    receiver: str
    variant: str | None = None
    worth: Worth
    why: str
    seconds: Estimate | None = None
    prefilled: float | None = None
    bytes: float | None = None
    bytes_as_text: float | None = None

    @property
    def name(self) -> str:
        return f"{self.sender} → {self.receiver}"

    @property
    def is_worth_it(self) -> bool:
        return self.worth in ("better", "faster")


class EdgeCurve(BaseModel):
    """Predicted seconds of a run by length of the document, over text and over cache: one sender, so many receivers.

    Beyond `longest_measured` tokens the measured prefill is extrapolated.
    """

    form: str
    edge: str
    receivers: int
    tokens: list[int]
    cache: list[float]
    text: list[float]
    longest_measured: int


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
        generated, seconds = (
            sum(getattr(agent, of) for agent in self.agents.values()) for of in ("generated", "decode")
        )
        return generated / seconds if generated and seconds else None

    def edge(self, sender: str, receiver: str) -> EdgeSummary | None:
        """The summary of an edge, if it carried something."""
        return next((edge for edge in self.edges if (edge.sender, edge.receiver) == (sender, receiver)), None)
