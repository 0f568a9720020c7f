"""Examples with every variant's reply, cut so that the page stays below a fixed size."""

from typing import Any

from cachegraph.graph.data.examples import Example

from ..comparison import Comparison
from ..metrics import METRICS, Metric, choose
from ..records import ExampleRecord

__all__ = ["judge", "pair", "questions"]

BUDGET = 10_000_000  # characters of all texts together
SHORTEST, LONGEST = 120, 4000  # characters: bounds of the length at which a text is cut


def judge(comparison: Comparison) -> Metric | None:
    """Return the metric that decides whether a reply is right: the first built-in one that is a fraction."""
    known = (METRICS.get(metric.name) for metric in comparison.metrics)
    return next((metric for metric in known if metric is not None and metric.unit == "points"), None)


def pair(comparison: Comparison) -> tuple[str, str]:
    """Return the two variants that the page first shows side by side."""
    names = _variants(comparison)
    first = "text" if "text" in names else names[0] if names else ""
    others = [name for name in ("cache", "both", "auto", *names) if name in names and name != first]
    return first, others[0] if others else first


def questions(comparison: Comparison) -> dict[str, Any]:
    """Return the data of the examples table: per example its inputs, the right answer and every variant's reply."""
    names, metric = _variants(comparison), judge(comparison)
    first_seed = min((record.seed for record in comparison.records), default=0)
    by_variant = {
        name: {record.index: record for record in comparison.records_of(name) if record.seed == first_seed}
        for name in names
    }
    texts = len(comparison.examples) * (len(names) + 3)
    room = max(SHORTEST, min(LONGEST, BUDGET // max(texts, 1)))
    rows = []
    for example in comparison.examples:
        turns = [_turn(by_variant[name].get(example.index), example, metric, room) for name in names]
        rows.append({"id": example.id, "asked": _asked(example, room), "right": _right(example, room), "turns": turns})
    return {"variants": names, "rows": rows}


def _variants(comparison: Comparison) -> list[str]:
    return [row.name for row in comparison.rows if row.was_run]


def _asked(example: Example, room: int) -> list[list[str]]:
    asked = [[name, _cut(text, room)] for name, text in example.inputs.items()]
    if example.choices is not None:
        asked.append(["choices", _cut("\n".join(example.choices), room)])
    return asked


def _right(example: Example, room: int) -> str:
    if example.choices is not None and example.answer is not None:
        return _cut(example.choices[example.answer], room)
    return _cut("\n".join(example.references), room)


def _turn(record: ExampleRecord | None, example: Example, metric: Metric | None, room: int) -> list[Any]:
    """Return [reply, right (1), wrong (0) or unknown (null), the most likely choice, the error]."""
    if record is None:
        return ["", None, "", "no result"]
    if record.error is not None:
        return [_cut(record.reply, room), None, "", _cut(record.error, room)]
    return [
        _cut(record.reply, room),
        _is_right(record, example, metric),
        _cut(_picked(record, example, metric), room),
        "",
    ]


def _is_right(record: ExampleRecord, example: Example, metric: Metric | None) -> int | None:
    if metric is None or (metric.of_choices and not record.scores):
        return None
    return int(metric(example, record.reply, record.scores) >= 0.5)


def _picked(record: ExampleRecord, example: Example, metric: Metric | None) -> str:
    if not record.scores or example.choices is None:
        return ""
    return example.choices[choose(record.scores, metric is not None and metric.name == "accuracy_per_character")]


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[:room]}… ({len(text) - room:,} more characters)"
