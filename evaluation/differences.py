"""Paired differences of variants: intervals, tests, effect sizes, Holm's correction, and what the examples can show."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .comparison import Difference, Estimate, MetricInfo
from .effects import ALPHA, cohens_h, detectable, detectable_mean, holm, matched_odds_ratio, standardised
from .stats import Floats, bootstrap_means, interval, is_binary, mcnemar, two_sided, unanimous, wilson
from .variants import CACHED, TUNED, Name, baseline_of, control_of

__all__ = ["Values", "all_differences", "correct", "estimates"]


@dataclass(frozen=True, eq=False)
class Values:
    """The metrics of all variants that ran: by variant (examples, metrics), over the same examples.

    `recorded` maps a variant to the variant whose records it shows. `groups` has an entry per example. `once`: each
    example has one record per variant, so McNemar's test applies. `parts`: these are the examples of one of so many
    categories.
    """

    by_variant: Mapping[str, Floats]
    recorded: Mapping[str, str]
    metrics: Sequence[MetricInfo]
    groups: Sequence[Hashable]
    seed: int
    once: bool
    parts: int = 1

    @property
    def group_count(self) -> int:
        return len(set(self.groups))

    @property
    def independent(self) -> bool:
        """Whether every example is a group of its own."""
        return self.group_count == len(self.groups)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each variant with each of its baselines that ran."""
        names = self.by_variant
        return [(name, base) for name in names for base in _baselines(name, names) if base in names and base != name]

    @property
    def comparisons(self) -> int:
        """The number of comparisons in one metric, over all categories."""
        pairs = {_ends(name, base, self.recorded) for name, base in self.pairs}
        return max(sum(len(pair) > 1 for pair in pairs), 1) * self.parts

    def resampled(self, columns: Floats) -> Floats:
        """Bootstrap means of columns (examples, columns) over examples, or over their groups."""
        return bootstrap_means(columns, self.seed, groups=None if self.independent else self.groups)


def estimates(values: Values) -> dict[str, dict[str, Estimate]]:
    """The mean of each metric with its interval, by variant and metric."""
    found: dict[str, dict[str, Estimate]] = {name: {} for name in values.by_variant}
    means = values.resampled(np.concatenate(list(values.by_variant.values()), axis=1))
    for place, (name, columns) in enumerate(values.by_variant.items()):
        for number, metric in enumerate(values.metrics):
            own = columns[:, number]
            share = metric.unit == "points" and is_binary(own)
            resampled = means[:, place * len(values.metrics) + number]
            ends = wilson(own, None if values.independent else values.groups) if share else interval(resampled)
            found[name][metric.name] = Estimate(value=float(own.mean()), low=ends.low, high=ends.high)
    return found


def all_differences(values: Values) -> list[Difference]:
    """The difference of each variant to each of its baselines, in each metric; p is not corrected yet."""
    if not values.pairs:
        return []
    by_pair = [values.by_variant[name] - values.by_variant[base] for name, base in values.pairs]
    means = values.resampled(np.concatenate(by_pair, axis=1))
    found = []
    for place, (name, base) in enumerate(values.pairs):
        for number, metric in enumerate(values.metrics):
            resampled = means[:, place * len(values.metrics) + number]
            found.append(_difference(values, name, base, number, metric, resampled))
    return found


def correct(parts: Sequence[Sequence[Difference]], recorded: Mapping[str, str]) -> None:
    """Fill in the p-values that Holm's method corrects for all comparisons of a metric.

    `parts` are the differences over all examples, or those of each category. In a part, a pair counts once, whichever
    of the two is the baseline. Two names of the same records are not a comparison.
    """
    families: dict[str, dict[tuple[int, frozenset[str]], list[Difference]]] = {}
    for place, part in enumerate(parts):
        for difference in part:
            ends = _ends(difference.variant, difference.baseline, recorded)
            difference.p_corrected = difference.p
            if len(ends) > 1:
                families.setdefault(difference.metric, {}).setdefault((place, ends), []).append(difference)
    for family in families.values():
        comparisons = list(family.values())
        for same, p in zip(
            comparisons, holm([max(difference.p for difference in same) for same in comparisons]), strict=True
        ):
            for difference in same:
                difference.p_corrected, difference.comparisons = p, len(comparisons)


def _ends(name: str, base: str, recorded: Mapping[str, str]) -> frozenset[str]:
    return frozenset((recorded.get(name, name), recorded.get(base, base)))


def _baselines(name: str, names: Mapping[str, object]) -> tuple[str, ...]:
    """The baselines of a variant: text, its fuser's mismatched control, alone, its channel's control, and of one with
    caches the receiver's own model trained the same way.

    A variant with one cache edge is compared with text and with its own control.
    """
    if Name.parse(name).edge is not None:
        return ("text", control_of(name))
    alone = "floor" if "alone" not in names else "alone"  # two names of one variant
    tuned = (
        [variant for variant in names if Name.parse(variant).kind in TUNED] if Name.parse(name).kind in CACHED else []
    )
    return tuple(dict.fromkeys(("text", baseline_of("mismatched", name), alone, control_of(name), *tuned)))


def _difference(values: Values, name: str, base: str, number: int, metric: MetricInfo, resampled: Floats) -> Difference:
    own, other = values.by_variant[name][:, number], values.by_variant[base][:, number]
    binary = is_binary(own) and is_binary(other)
    counts = binary and values.once and values.independent
    test = _test(own, other, resampled, values.group_count, counts)
    if metric.unit == "points" and values.recorded[name] != values.recorded[base]:
        test = _with_width(test, own - other, values.group_count)
    effects: dict[str, Any] = {}
    if binary and metric.unit == "points":
        effects["cohens_h"] = cohens_h(float(own.mean()), float(other.mean()))
    else:
        effects["standardised"] = standardised(own - other)
    alpha = ALPHA / values.comparisons
    if counts:
        only_own, only_other = int((own > other).sum()), int((own < other).sum())
        if (ratio := matched_odds_ratio(only_own, only_other)) is not None:
            effects["odds_ratio"] = Estimate(value=ratio.value, low=ratio.low, high=ratio.high)
        effects["detectable"] = detectable(len(own), (only_own + only_other) / len(own), alpha=alpha)
    else:
        effects["detectable"] = detectable_mean(float(resampled.std(ddof=1)), alpha=alpha)
    return Difference(variant=name, baseline=base, metric=metric.name, **test, **effects)


def _test(variant: Floats, baseline: Floats, resampled: Floats, groups: int, counts: bool) -> dict[str, Any]:
    """A difference's value, interval and p. `counts`: McNemar's test applies."""
    low, high = interval(resampled)
    if counts:
        p = mcnemar(int((variant > baseline).sum()), int((variant < baseline).sum()))
    else:
        lone = groups == 1 < len(variant)  # one group says nothing about others
        p = 1.0 if lone or not np.any(variant != baseline) else two_sided(resampled)
    name = "McNemar, exact" if counts else "paired bootstrap"
    return {"value": float((variant - baseline).mean()), "low": low, "high": high, "p": p, "test": name}


def _with_width(test: dict[str, Any], differences: Floats, groups: int) -> dict[str, Any]:
    """The test if all examples differ alike, where a bootstrap has no width and its p ignores their number."""
    ends = unanimous(float(differences[0]), groups) if np.all(differences == differences[0]) else None
    if ends is None:
        return test
    alike = mcnemar(groups, 0) if differences[0] else 1.0
    return test | {"low": ends.low, "high": ends.high, "p": max(test["p"], alike)}
