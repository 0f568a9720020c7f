"""Which edges are worth a cache: each edge of a graph alone against text, and against its own mismatched control."""

from collections.abc import Mapping, Sequence

import numpy as np

from cachegraph.graph.data.examples import Example
from cachegraph.graph.graph import Graph
from cachegraph.graph.plan.expected_routes import all_expected_routes

from .comparison import Comparison, Difference, EdgeWorth, Estimate, MetricInfo, VariantRow
from .comparison_parts import Worth
from .differences import Values, estimates
from .records import ExampleRecord
from .summary import fallback
from .table_cells import number
from .variants import control_of
from .verdict import against

__all__ = ["capable_edges", "edge_sentences", "edge_worths"]

SECONDS = MetricInfo(name="seconds", unit="")


def capable_edges(graph: Graph) -> tuple[list[tuple[str, str]], dict[tuple[str, str], str]]:
    """The edges that may carry a cache, by what is known before models load; and why each of the others can't."""
    swapped = graph.with_channels("cache")
    routes = all_expected_routes(swapped.spec, swapped.folder)
    reasons = {ends: route.fallback_reason or "it is a text edge" for ends, route in routes.items()}
    capable = [ends for ends, route in routes.items() if route.used != "text"]
    return capable, {ends: why for ends, why in reasons.items() if ends not in capable}


def edge_worths(
    comparison: Comparison, edges: Sequence[tuple[str, str]], text_only: Mapping[tuple[str, str], str]
) -> list[EdgeWorth]:
    """A judgement of each edge that was swapped alone, and the reason of each that stays text."""
    judged = [_judge(comparison, sender, receiver) for sender, receiver in edges]
    return judged + [
        EdgeWorth(sender=sender, receiver=receiver, worth="text only", why=why)
        for (sender, receiver), why in text_only.items()
    ]


def edge_sentences(worths: Sequence[EdgeWorth]) -> list[str]:
    """A sentence for each edge, and before them the edges that are worth a cache."""
    if not worths:
        return []
    good = [worth.name for worth in worths if worth.is_worth_it]
    head = f"worth a cache, each edge alone: {', '.join(good)}" if good else "no edge alone is worth a cache"
    return [head, *(f"{worth.name}: {worth.why}" for worth in worths)]


def _judge(comparison: Comparison, sender: str, receiver: str) -> EdgeWorth:
    name = f"cache:{sender}:{receiver}"
    row, text, wrong = comparison.row(name), comparison.row("text"), comparison.row(control_of(name))
    worth = EdgeWorth(sender=sender, receiver=receiver, variant=name, worth="unknown", why="it was not run")
    if row is None or row.why_not is not None or text is None or text.why_not is not None:
        first = next(
            (compared.why_not for compared in (row, text) if compared is not None and compared.why_not is not None),
            None,
        )
        return worth.model_copy(update={"why": first or worth.why})
    own, words = row.edge(sender, receiver), text.edge(sender, receiver)
    worth.bytes = own.bytes if own is not None else None
    worth.bytes_as_text = words.bytes if words is not None else None
    worth.prefilled = _prefilled(row) - _prefilled(text)
    worth.seconds = _seconds(comparison, name)
    if not row.cache_share:
        return worth.model_copy(update={"why": f"its cache was never used; {fallback(row)}"})
    controlled = wrong is not None and wrong.why_not is None
    judged, why = _verdict(comparison, name, worth.seconds, controlled)
    return worth.model_copy(update={"worth": judged, "why": why})


def _verdict(comparison: Comparison, name: str, seconds: Estimate | None, controlled: bool) -> tuple[Worth, str]:
    """The judgement and its reason: quality against text, then against the control, then time."""
    metric = comparison.metrics[0]
    over_text, over_wrong = comparison.difference(name, "text"), comparison.difference(name, control_of(name))
    if over_text is None:
        return "unknown", "no example finished in every variant"
    said = against(over_text, metric)
    if over_text.shown and over_text.value < 0:
        return "worse", said
    if over_wrong is None or not controlled:
        return "unknown", f"{said}; without {control_of(name)} nothing is said about what its cache carries"
    used = over_wrong.shown and over_wrong.value > 0
    by_control = against(over_wrong, metric)
    if not used:
        joint = "but" if over_text.shown else "and"
        doubt = "" if over_wrong.shown else _doubt(comparison, over_wrong)
        return "not used", f"{said}, {joint} {by_control}: no communication shown on this edge{doubt}"
    if over_text.shown:
        time = "" if seconds is None else f"; {_time(seconds, comparison)}"
        return "better", f"{said}, and {by_control}{time}"
    if seconds is not None and seconds.high < 0:
        return "faster", f"{said}, {by_control}, and {_time(seconds, comparison)}"
    return "no gain", f"{said}, and no time is saved: {_time(seconds, comparison)}" if seconds is not None else said


def _doubt(comparison: Comparison, difference: Difference) -> str:
    """What the examples could have shown, and the metrics that do show that the cache is used; or nothing."""
    metric, *others = comparison.metrics
    doubts = []
    if difference.detectable is not None:
        least = number(difference.detectable, metric)
        doubts.append(f"detectable with {len(comparison.examples)} examples: {least} {metric.unit or metric.name}")
    for other in others:
        more = comparison.difference(difference.variant, difference.baseline, other.name)
        if more is not None and more.shown and more.value > 0:
            doubts.append(f"by {other.name}, {against(more, other)}")
    return f" ({'; '.join(doubts)})" if doubts else ""


def _time(seconds: Estimate, comparison: Comparison) -> str:
    several = comparison.environment.concurrency
    at = f", {several} examples at a time" if several > 1 else ""
    value, low, high = (number(figure, SECONDS, True) for figure in (seconds.value, seconds.low, seconds.high))
    if seconds.low <= 0 <= seconds.high:
        return f"no difference in time is shown ({value} s, {low} to {high}{at})"
    ends = sorted(abs(bound) for bound in (seconds.low, seconds.high))
    low, high = (number(bound, SECONDS) for bound in ends)
    word = "less" if seconds.value < 0 else "more"
    return f"a run takes {number(abs(seconds.value), SECONDS)} s {word} ({low} to {high}{at})"


def _seconds(comparison: Comparison, name: str) -> Estimate | None:
    """Seconds of a run minus those over text: the mean over examples that finished in both."""
    own, other = (_by_example(comparison.records_of(variant)) for variant in (name, "text"))
    shared = [example for example in comparison.examples if example.index in own and example.index in other]
    if not shared:
        return None
    column = np.array([[own[example.index] - other[example.index]] for example in shared])
    values = Values(
        {name: column}, {name: name}, [SECONDS], _groups(shared), comparison.environment.seeds[0], once=True
    )
    return estimates(values)[name][SECONDS.name]


def _by_example(records: Sequence[ExampleRecord]) -> dict[int, float]:
    """The mean seconds over seeds, by example."""
    seconds: dict[int, list[float]] = {}
    for record in records:
        if record.error is None:
            seconds.setdefault(record.index, []).append(record.seconds)
    return {index: sum(times) / len(times) for index, times in seconds.items()}


def _groups(examples: Sequence[Example]) -> list[int | str]:
    return [example.index if example.group is None else example.group for example in examples]


def _prefilled(row: VariantRow) -> float:
    return sum(agent.prefilled for agent in row.agents.values())
