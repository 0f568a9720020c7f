"""Warnings of a comparison: examples from a fuser's training, too few examples, metrics that disagree."""

from collections.abc import Iterator, Sequence
from math import ceil

from cachegraph.channels.fusers.files.card import Card
from cachegraph.graph.data.examples import Example
from cachegraph.graph.plan.wiring import Wiring
from cachegraph.graph.run.subgraph import all_nodes

from .comparison import Difference, MetricInfo, VariantRow
from .stats import mcnemar
from .variants import Name
from .verdict import FEW, against

__all__ = ["cards_of", "doubts"]

Cards = dict[str, Card]  # by what recipes call the fuser


def cards_of(wiring: Wiring) -> Cards:
    """The cards of all fusers and translators on the edges of an open graph."""
    cards: Cards = {}
    for _, node in all_nodes(wiring):
        for route in node.entries:
            for card in route.cards:
                named = getattr(route.edge, "fuser", None)
                cards[named if isinstance(named, str) else f"{card.receiver.name}--{card.sharer.name}"] = card
    return cards


def doubts(
    rows: Sequence[VariantRow],
    differences: Sequence[Difference],
    metrics: Sequence[MetricInfo],
    examples: Sequence[Example],
    cards: Cards,
) -> list[str]:
    """Sentences, the most serious first."""
    return [
        *_trained_on(examples, cards),
        *_too_few(rows, differences),
        *_disagreeing(differences, metrics),
        *_badly_chosen(cards),
    ]


def _trained_on(examples: Sequence[Example], cards: Cards) -> Iterator[str]:
    for name, card in cards.items():
        if card.trained_rows is None:
            continue
        seen, checked = card.trained_rows.look_up([example.inputs for example in examples])
        if seen:
            of = (
                f"{checked} evaluated rows" if checked == len(examples) else f"the {checked} rows that can be looked up"
            )
            yield (
                f"{seen} of {of}, or the texts they are about, were in the training data of the fuser {name!r}, so its "
                "results say little about new examples; evaluate it on examples that it was not trained on"
            )


def _too_few(rows: Sequence[VariantRow], differences: Sequence[Difference]) -> Iterator[str]:
    """So few independent examples that only a large difference, or none, could be shown after Holm's correction."""
    ran = [row for row in rows if row.why_not is None]
    examples = max((row.examples for row in ran), default=0)
    groups = next((row.groups for row in ran if row.groups is not None), None)
    count, what = (examples, "examples") if groups is None else (groups, "groups of examples")
    if not 0 < count < FEW:
        return
    comparisons = max((difference.comparisons for difference in differences), default=1)
    needed = next((number for number in range(1, count + 1) if mcnemar(number, 0) * comparisons < 0.05), None)
    if needed is None:
        yield (
            f"{count} {what} are too few to mean anything: even if all of them differed the same way, no difference "
            "could be shown; evaluate some hundreds"
        )
    else:
        yield (
            f"with {count} {what} intervals are rough, and no difference below {ceil(100 * needed / count)} points can "
            "be shown; evaluate some hundreds"
        )


def _disagreeing(differences: Sequence[Difference], metrics: Sequence[MetricInfo]) -> Iterator[str]:
    """Differences of another metric that the verdict's metric does not show, or shows with the opposite sign."""
    first, *others = metrics
    verdict = {
        (difference.variant, difference.baseline): difference
        for difference in differences
        if difference.metric == first.name
    }
    units = {metric.name: metric for metric in others}
    for difference in differences:
        other = verdict.get((difference.variant, difference.baseline))
        if difference.metric not in units or other is None or not difference.shown or not _is_about_cache(difference):
            continue
        if not other.shown or (difference.value > 0) != (other.value > 0):
            yield (
                f"the metrics disagree: by {difference.metric}, {against(difference, units[difference.metric])}; "
                f"by {first.name}, on which the verdict rests, {against(other, first)}"
            )


def _is_about_cache(difference: Difference) -> bool:
    name = Name.parse(difference.variant)
    return name.kind in ("cache", "both", "auto") and name.edge is None


def _badly_chosen(cards: Cards) -> Iterator[str]:
    for name, card in cards.items():
        rows = card.metrics.get("dev_rows")
        if rows is not None and rows < FEW:
            yield (
                f"the fuser {name!r} was chosen by {rows:.0f} dev rows, which are too few to choose by; its card's "
                "metrics mean nothing, so train it with more of them (`data.dev`)"
            )
