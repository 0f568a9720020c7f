"""One example, once: run the graph, under a control if there is one, and score the choices behind the same caches."""

from collections.abc import Mapping
from time import perf_counter

from cachegraph.agents.base import ChoiceScore, Control
from cachegraph.errors import CachegraphError, RunError
from cachegraph.graph.data.examples import Example
from cachegraph.graph.graph import Graph
from cachegraph.graph.run.hooks import RunHooks
from cachegraph.graph.run.result import Result
from cachegraph.graph.run.run import Run
from cachegraph.graph.run.subgraph import all_nodes, answering_node

from .records import EdgeRecord, ExampleRecord
from .variants import ControlKind

__all__ = ["Play", "play"]


class Play:
    """A graph and how it is played: the variant its records are called by, the seed, the control."""

    def __init__(self, variant: str, seed: int, graph: Graph, control: ControlKind | None, scores: bool):
        self.variant = variant
        self.seed = seed
        self.graph = graph
        self.control = control
        self.scores = scores


async def play(how: Play, example: Example, partner: Example | None) -> ExampleRecord:
    """The record of one example; of one that failed, its error."""
    record = ExampleRecord(variant=how.variant, seed=how.seed, index=example.index)
    began = perf_counter()
    try:
        hooks = RunHooks(await _controls(how, partner))
        record.partner = partner.index if partner is not None else None
        began = perf_counter()
        result = await _run(how.graph, example, hooks).execute()
        record.scores = await _scores(how, hooks, example)
    except CachegraphError as error:
        record.error = str(error)
        record.seconds = perf_counter() - began
        if isinstance(error, RunError) and isinstance(error.result, Result):
            _take(record, error.result)
        return record
    _take(record, result)
    return record


async def _controls(how: Play, partner: Example | None) -> Mapping[str, Control]:
    """By agent what it gets instead of its caches. A partner's run stops short of the output agent's turn."""
    if how.control == "zero":
        return {name: Control("zero") for name, _ in all_nodes(await how.graph.awire())}
    if how.control is None or partner is None:
        return {}
    rehearsal = RunHooks(skip=answering_node(await how.graph.awire())[0])
    await _run(how.graph, partner, rehearsal).execute()
    return {name: Control("mismatched", turn) for name, turn in rehearsal.turns.items()}


def _run(graph: Graph, example: Example, hooks: RunHooks) -> Run:
    inputs = {
        name: example.inputs.get(name, "" if spec.default is None else spec.default)
        for name, spec in graph.spec.inputs.items()
    }
    return Run(graph.spec, inputs, graph.awire, None, hooks)


async def _scores(how: Play, hooks: RunHooks, example: Example) -> list[ChoiceScore]:
    if not how.scores or example.choices is None:
        return []
    name, node = answering_node(await how.graph.awire())
    score = getattr(node.agent, "score", None)
    if score is None:
        raise RunError(f"agent {name!r} can't score choices; use a metric of replies, such as 'contains'")
    scores: list[ChoiceScore] = await score(hooks.turns[name], example.choices)
    return scores


def _take(record: ExampleRecord, result: Result) -> None:
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
