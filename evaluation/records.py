"""What one example gave in one variant: everything that tables, statistics and the report are made of."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cachegraph.agents.base import ChoiceScore
from cachegraph.channels.payload import EdgeReport
from cachegraph.graph.run.result import AgentResult

__all__ = ["EdgeRecord", "ExampleRecord", "MemoryUse"]


class EdgeRecord(BaseModel):
    """An edge's two ends, and what it did."""

    model_config = ConfigDict(populate_by_name=True)

    sender: str = Field(alias="from")
    receiver: str = Field(alias="to")
    report: EdgeReport


class MemoryUse(BaseModel):
    """The most bytes that were held while the variant ran up to this example."""

    rss: int = 0  # of the whole process
    gpu: int = 0  # of all GPUs, by torch's count


class ExampleRecord(BaseModel):
    """One example of one variant. `seconds` is the run's wall time and includes neither scoring nor other examples'
    rehearsals; `first_token` counts from the run's begin. `partner` is the example whose caches a mismatched run got.
    """

    kind: Literal["result"] = "result"
    variant: str
    seed: int
    index: int  # of the example in the data
    partner: int | None = None
    reply: str = ""
    scores: list[ChoiceScore] = []
    error: str | None = None
    seconds: float = 0.0
    first_token: float | None = None
    agents: dict[str, AgentResult] = {}
    edges: list[EdgeRecord] = []
    memory: MemoryUse = MemoryUse()

    @property
    def key(self) -> tuple[str, int, int]:
        return self.variant, self.seed, self.index

    def to_line(self) -> str:
        """As one line of a results file."""
        return self.model_dump_json(by_alias=True)

    def edge(self, sender: str, receiver: str) -> EdgeReport | None:
        """What that edge did here."""
        found: Any = (each.report for each in self.edges if (each.sender, each.receiver) == (sender, receiver))
        return next(found, None)
