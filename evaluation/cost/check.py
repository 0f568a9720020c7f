"""Predictions of the cost model beside real runs of the same recipe on the same document."""

from collections.abc import Callable
from dataclasses import replace
from statistics import median

from pydantic import BaseModel

from cachegraph.graph.graph import Graph
from cachegraph.graph.run.result import Result

from .measure import english
from .predict import CostSetting, predict
from .shape import Shape

__all__ = ["CheckedRun", "check_predictions"]

REPEATS = 3


class CheckedRun(BaseModel):
    """One way of running the recipe: predicted and measured seconds (the median of `runs`), tokens and bytes.

    The prediction takes the lengths of the replies from the runs, which nobody can know before.
    """

    over: str
    runs: int
    predicted: float
    measured: float
    fastest: float
    slowest: float
    predicted_tokens: float
    measured_tokens: float
    predicted_bytes: float
    measured_bytes: float

    @property
    def ratio(self) -> float:
        """Predicted over measured seconds."""
        return self.predicted / self.measured


async def check_predictions(
    graph: Graph, shape: Shape, setting: CostSetting, length: float, on_stage: Callable[[str], None] = lambda _: None
) -> list[CheckedRun]:
    """Run the recipe over text and as it is, each several times on a new document of `length` characters."""
    found = []
    number = 10
    for over, run_graph, own in (("text", graph.with_channels("text"), shape.over_text()), ("cache", graph, shape)):
        on_stage(f"running {graph.spec.name} over {over}")
        results = []
        for _ in range(1 + REPEATS):
            number += 1
            results.append(await run_graph.arun(_inputs(run_graph, shape, length, number)))
        del results[0]  # it wakes up the models
        found.append(_checked(over, own, setting, length, results))
    return found


def _inputs(graph: Graph, shape: Shape, length: float, number: int) -> dict[str, str]:
    """The default inputs, with a document that no other run has read."""
    values = {
        name: str(declared.default) if declared.default is not None else english(40)
        for name, declared in graph.spec.inputs.items()
    }
    if shape.document is not None:
        own = values[shape.document]
        text = own if len(own) == length else english(round(length))
        values[shape.document] = f"{number}{text[2:]}"
    return values


def _checked(over: str, shape: Shape, setting: CostSetting, length: float, results: list[Result]) -> CheckedRun:
    middle = sorted(results, key=lambda result: result.seconds)[len(results) // 2]
    replies = {name: agent.tokens.generated for name, agent in middle.agents.items()}
    prediction = predict(shape, replace(setting, replies=replies, bandwidth=None), length)
    seconds = [result.seconds for result in results]
    return CheckedRun(
        over=over,
        runs=len(results),
        predicted=prediction.seconds,
        measured=median(seconds),
        fastest=min(seconds),
        slowest=max(seconds),
        predicted_tokens=prediction.prefilled,
        measured_tokens=sum(agent.tokens.prefilled for agent in middle.agents.values()),
        predicted_bytes=prediction.bytes,
        measured_bytes=sum(report.bytes for report in middle.edges.values()),
    )
