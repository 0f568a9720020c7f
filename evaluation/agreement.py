"""Agreement of the output agent's distributions over the choices: with the text, and with the cache."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from cachegraph.agents.base import ChoiceScore
from cachegraph.graph.data.examples import Example

from .comparison import Agreement, MetricInfo, VariantRow
from .differences import Values, estimates
from .metrics import choose
from .records import ExampleRecord
from .variants import Name

__all__ = ["agreements", "kl_divergence"]

BASELINE = "text"
KINDS = ("cache", "both", "auto", "mismatched")
MEASURES = [MetricInfo(name="same_choice", unit="points"), MetricInfo(name="kl", unit="nats")]


def agreements(
    rows: Sequence[VariantRow], records: Mapping[str, Sequence[ExampleRecord]], examples: Sequence[Example], seed: int
) -> list[Agreement]:
    """The agreement of each variant with caches, and of its control, with the text variant.

    `records` are by variant. Examples count if their choices have finite scores in both.
    """
    running = {row.name: row for row in rows if row.why_not is None}
    if BASELINE not in running:
        return []
    found = []
    for name, row in running.items():
        if Name.parse(name).kind in KINDS and row.was_run:
            found += _agreement(name, records[name], records[BASELINE], examples, seed)
    return found


def kl_divergence(baseline: Sequence[ChoiceScore], variant: Sequence[ChoiceScore]) -> float:
    """KL(baseline || variant) in nats, of the two distributions over the same choices."""
    one, other = (_log_shares([score.logprob for score in scores]) for scores in (baseline, variant))
    return max(sum(math.exp(p) * (p - q) for p, q in zip(one, other, strict=True)), 0.0)


def _log_shares(logprobs: Sequence[float]) -> list[float]:
    largest = max(logprobs)
    total = largest + math.log(sum(math.exp(logprob - largest) for logprob in logprobs))
    return [logprob - total for logprob in logprobs]


def _agreement(
    name: str,
    records: Sequence[ExampleRecord],
    baseline: Sequence[ExampleRecord],
    examples: Sequence[Example],
    seed: int,
) -> list[Agreement]:
    """One agreement, or none if no example has scores in both."""
    own, other = _by_index(records), _by_index(baseline)
    scored = [example for example in examples if own.get(example.index) and other.get(example.index)]
    if not scored:
        return []
    measured = np.array([_measures(own[example.index], other[example.index]) for example in scored])
    groups = [example.index if example.group is None else example.group for example in scored]
    values = Values({name: measured}, {name: name}, MEASURES, groups, seed, once=True)
    shown = estimates(values)[name]
    return [Agreement(variant=name, baseline=BASELINE, examples=len(scored), **shown)]


def _by_index(records: Sequence[ExampleRecord]) -> dict[int, dict[int, ExampleRecord]]:
    """The records with finite scores, by example and seed."""
    by_example: dict[int, dict[int, ExampleRecord]] = {}
    for record in records:
        if record.error is None and record.scores and all(math.isfinite(score.logprob) for score in record.scores):
            by_example.setdefault(record.index, {})[record.seed] = record
    return by_example


def _measures(own: Mapping[int, ExampleRecord], other: Mapping[int, ExampleRecord]) -> tuple[float, float]:
    """Whether the choice is the same, and the divergence: means over seeds. A variant without seeds has one."""
    seeds = sorted({*own, *other})
    pairs = [(own.get(seed, own[min(own)]).scores, other.get(seed, other[min(other)]).scores) for seed in seeds]
    return (
        fmean(choose(one) == choose(base) for one, base in pairs),
        fmean(kl_divergence(base, one) for one, base in pairs),
    )
