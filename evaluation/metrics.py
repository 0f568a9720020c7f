"""Metrics of replies and choices. A metric maps one example to a number; 1 is right and 0 wrong for fractions."""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from cachegraph.agents.base import ChoiceScore
from cachegraph.common.did_you_mean import suggest
from cachegraph.errors import InputError
from cachegraph.graph.data.examples import Example

__all__ = ["METRICS", "Metric", "Unit", "UserMetric", "choose", "chosen", "pick_metrics", "words"]

Unit = Literal["points", "nats", ""]
Scores = Sequence[ChoiceScore]
UserMetric = Callable[[Example, str], float]


@dataclass(frozen=True)
class Metric:
    """A named metric. `of_choices`: it needs the choices' scores instead of the reply."""

    name: str
    unit: Unit
    of_choices: bool
    function: Callable[[Example, str, Scores], float]

    def __call__(self, example: Example, reply: str, scores: Scores) -> float:
        """This example's value. Raises InputError if a user's metric returns no finite number."""
        try:
            value = float(self.function(example, reply, scores))
        except (TypeError, ValueError) as error:
            where = f"for row {example.index}"
            raise InputError(f"the metric {self.name!r} returns no number {where}: {error}") from error
        if not math.isfinite(value):
            where = f"for row {example.index}"
            raise InputError(f"the metric {self.name!r} returns {value} {where}; return a finite number")
        return value


def choose(scores: Scores, per_character: bool = False) -> int:
    """Index of the likeliest choice, the first of equally likely ones. `per_character`: normalised by length."""
    values = [score.logprob / (max(score.characters, 1) if per_character else 1) for score in scores]
    return values.index(max(values))


def chosen(metrics: Sequence[Metric], scores: Scores) -> int:
    """Index of the choice that a table shows as the answer, by the first metric."""
    return choose(scores, any(metric.name == "accuracy_per_character" for metric in metrics[:1]))


def words(text: str) -> list[str]:
    """Normalised words as in SQuAD: without case, punctuation and articles."""
    lower = "".join(
        " " if character in string.punctuation or unicodedata.category(character).startswith("P") else character
        for character in text.lower()
    )
    return re.sub(r"\b(a|an|the)\b", " ", lower).split()


def _exact(example: Example, reply: str, _: Scores) -> float:
    return float(any(words(reply) == words(right) for right in example.references))


def _contains(example: Example, reply: str, _: Scores) -> float:
    said = words(reply)
    return float(any(_within(words(right) or right.lower().split(), said) for right in example.references))


def _within(part: list[str], words: list[str]) -> bool:
    return any(words[at : at + len(part)] == part for at in range(len(words) - len(part) + 1))


def _f1(example: Example, reply: str, _: Scores) -> float:
    return max((_overlap(words(reply), words(right)) for right in example.references), default=0.0)


def _overlap(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "points", True, lambda example, _, scores: choose(scores) == example.answer),
        Metric(
            "accuracy_per_character", "points", True, lambda example, _, scores: choose(scores, True) == example.answer
        ),
        Metric("answer_logprob", "nats", True, lambda example, _, scores: scores[example.answer or 0].logprob),
        Metric("exact_match", "points", False, _exact),
        Metric("contains", "points", False, _contains),
        Metric("f1", "points", False, _f1),
    )
}
OF_CHOICES = ("accuracy", "accuracy_per_character", "answer_logprob", "contains")
OF_REPLIES = ("exact_match", "contains", "f1")


def pick_metrics(wanted: Sequence[str | UserMetric] | None, example: Example) -> list[Metric]:
    """The requested metrics, or those that fit the data. Raises InputError for unknown metrics and missing columns."""
    if not wanted:
        if not example.references:
            raise InputError("the data has neither choices nor references; name their columns, or give a metric")
        wanted = OF_CHOICES if example.choices is not None else OF_REPLIES
    metrics = [_metric(entry) for entry in wanted]
    for metric in metrics:
        if metric.of_choices and example.choices is None:
            raise InputError(f"the metric {metric.name!r} needs choices, and the data has none; name their column")
        if metric.name in OF_REPLIES and not example.references:
            raise InputError(f"the metric {metric.name!r} needs references, and the data has none; name their column")
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise InputError(
            f"the metrics {', '.join(map(repr, names))} are not all different; give each a name of its own"
        )
    return metrics


def _metric(wanted: str | UserMetric) -> Metric:
    if not isinstance(wanted, str):
        return _user(getattr(wanted, "__name__", type(wanted).__name__), wanted)
    if ":" in wanted:
        module, _, name = wanted.partition(":")
        try:
            function = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"the metric {wanted!r} can't be imported: {error}") from error
        return _user(wanted, function)
    if wanted not in METRICS:
        raise InputError(f"there is no metric {wanted!r}{suggest(wanted, METRICS)}")
    return METRICS[wanted]


def _user(name: str, function: UserMetric) -> Metric:
    if not callable(function):
        raise InputError(f"the metric {name!r} is not a function of an example and a reply")
    return Metric(name, "", False, lambda example, reply, _: function(example, reply))
