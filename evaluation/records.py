"""The record of one example in one variant, from which tables, statistics and the report are made."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cachegraph.agents.base import ChoiceScore
from cachegraph.channels.payload import EdgeReport
from cachegraph.graph.run.result import AgentResult

__all__ = ["EdgeRecord", "ExampleRecord", "MemoryUse"]


class EdgeRecord(BaseModel):
    """An edge's two ends, and the report of what it carried."""

    model_config = ConfigDict(populate_by_name=True)

    sender: str = Field(alias="from")
    receiver: str = Field(alias="to")
    report: EdgeReport


class MemoryUse(BaseModel):
    """Peak memory in bytes while the variant ran, up to this example."""

    rss: int = 0  # of the whole process
    gpu: int = 0  # of all GPUs, as torch counts it


class ExampleRecord(BaseModel):
    """One example of one variant.

    `seconds` is the run's wall time, without scoring and without a donor's run. `first_token` counts from the start of
    the run. `partner` is the index of the example whose caches a `mismatched` run got.
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
    metrics: dict[str, float] = {}  # by name; computed for a comparison, and not in its results file

    @property
    def key(self) -> tuple[str, int, int]:
        return self.variant, self.seed, self.index

    def to_line(self) -> str:
        """As one line of a results file."""
        return self.model_dump_json(by_alias=True, exclude={"metrics"})

    def edge(self, sender: str, receiver: str) -> EdgeReport | None:
        """The report of this edge, if it carried something."""
        reports: Any = (edge.report for edge in self.edges if (edge.sender, edge.receiver) == (sender, receiver))
        return next(reports, None)
