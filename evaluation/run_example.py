"""Run one example in one variant: the graph's turns, under a control if there is one, and the scores of its choices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

from cachegraph.agents.base import ChoiceScore, Control
from cachegraph.channels.payload import KVSpan
from cachegraph.errors import CachegraphError, RunError
from cachegraph.graph.data.examples import Example
from cachegraph.graph.graph import Graph
from cachegraph.graph.run.hooks import RunHooks
from cachegraph.graph.run.result import Result
from cachegraph.graph.run.run import Run
from cachegraph.graph.run.subgraph import all_nodes, answering_node

from .records import EdgeRecord, ExampleRecord
from .variants import ControlKind

__all__ = ["VariantRun", "run_example"]


@dataclass(frozen=True, eq=False)
class VariantRun:
    """One variant with one seed. `variant` is the name in its records.

    `scores`: score the choices of each example. `donors`: for each example the one whose caches it gets in the
    `mismatched` control. `prefix`: trained entries in front of the output agent's prompt.
    """

    variant: str
    seed: int
    graph: Graph
    control: ControlKind | None
    scores: bool
    donors: Sequence[Example] | None = None
    prefix: KVSpan | None = None


async def run_example(run: VariantRun, example: Example, donor: Example | None) -> ExampleRecord:
    """Run one example and return its record. The record of an example that failed holds its error."""
    record = ExampleRecord(variant=run.variant, seed=run.seed, index=example.index)
    began = perf_counter()
    try:
        hooks = RunHooks(await _controls(run, donor))
        record.partner = donor.index if donor is not None else None
        began = perf_counter()
        result = await _graph_run(run.graph, example, hooks).execute()
        record.scores = await _score_choices(run, hooks, example)
    except CachegraphError as error:
        record.error = str(error)
        record.seconds = perf_counter() - began
        if isinstance(error, RunError) and isinstance(error.result, Result):
            _copy_result(record, error.result)
        return record
    _copy_result(record, result)
    return record


async def _controls(run: VariantRun, donor: Example | None) -> Mapping[str, Control]:
    """For each agent, what replaces its incoming caches. The donor's run stops before the output agent's turn."""
    if run.prefix is not None:
        return {answering_node(await run.graph.awire())[0]: Control("tuned", prefix=run.prefix)}
    if run.control == "zero":
        return {name: Control("zero") for name, _ in all_nodes(await run.graph.awire())}
    if run.control is None or donor is None:
        return {}
    hooks = RunHooks(skip=answering_node(await run.graph.awire())[0])
    await _graph_run(run.graph, donor, hooks).execute()
    return {name: Control("mismatched", turn) for name, turn in hooks.turns.items()}


def _graph_run(graph: Graph, example: Example, hooks: RunHooks) -> Run:
    inputs = {
        name: example.inputs.get(name, "" if spec.default is None else spec.default)
        for name, spec in graph.spec.inputs.items()
    }
    return Run(graph.spec, inputs, graph.awire, None, hooks)


async def _score_choices(run: VariantRun, hooks: RunHooks, example: Example) -> list[ChoiceScore]:
    if not run.scores or example.choices is None:
        return []
    name, node = answering_node(await run.graph.awire())
    score = getattr(node.agent, "score", None)
    if score is None:
        raise RunError(f"agent {name!r} can't score choices; use a metric of replies, such as 'contains'")
    scores: list[ChoiceScore] = await score(hooks.turns[name], example.choices)
    return scores


def _copy_result(record: ExampleRecord, result: Result) -> None:
    record.reply = result.text
    record.seconds = result.seconds
    record.agents = result.agents
    record.edges = [
        EdgeRecord(sender=sender, receiver=receiver, report=report)
        for (sender, receiver), report in result.edges.items()
    ]
    output = result.agents[result.output]
    if output.timing.first_token is not None and output.started is not None:
        record.first_token = output.started + output.timing.first_token
