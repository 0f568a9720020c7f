"""What a comparison is asked to do, checked as far as that goes without a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from cachegraph.errors import InputError
from cachegraph.graph.data.dataset import Rows, read_rows
from cachegraph.graph.data.examples import Example, make_examples, merge_mapping
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.load import answering

from .derangement import partners, sample
from .metrics import Metric, UserMetric, pick_metrics
from .variants import Variant, make_variants

__all__ = ["Task", "make_task"]


@dataclass(frozen=True)
class Task:
    """Examples, variants, metrics and settings. `rows` is how many the data has, `data` what it is called."""

    graph: Graph
    examples: list[Example]
    rows: int
    data: str
    metrics: list[Metric]
    variants: list[Variant]
    seeds: list[int]
    limit: int | None
    partners: dict[int, list[Example] | None]  # by seed
    concurrency: int | None

    @property
    def scores(self) -> bool:
        return any(metric.of_choices for metric in self.metrics)


def make_task(
    graph: Graph,
    source: Rows,
    names: Sequence[str],
    wanted: Sequence[str | UserMetric] | None,
    columns: Mapping[str, str] | None,
    limit: int | None,
    seed: int,
    seeds: int,
    concurrency: int | None,
) -> Task:
    """Read and check everything. Raises InputError, with the row and the column where it is one."""
    for name, value in (("limit", limit), ("seeds", seeds), ("concurrency", concurrency)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be 1 or more, not {value}")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, not {seed}")
    spec = graph.validate().spec
    rows = read_rows(source)
    examples = make_examples(rows, spec, merge_mapping(spec.evaluate, columns or {}, list(spec.inputs)))
    metrics = pick_metrics(wanted, examples[0])
    _check_scoring(graph, metrics)
    picked = sample(examples, limit, seed)
    variants = make_variants(names, graph, len(picked))
    every = list(range(seed, seed + seeds))
    pairs = {each: partners(picked, each) if len(picked) > 1 else None for each in every}
    if pairs[seed] is None:
        why = "all examples give the agents the same inputs, so no cache is another's"
        variants = [
            Variant(each.name, each.records, why_not=why) if each.control == "mismatched" else each for each in variants
        ]
    data = Path(source).name if isinstance(source, str | PathLike) else "rows given in Python"
    return Task(graph, picked, len(rows), data, metrics, variants, every, limit, pairs, concurrency)


def _check_scoring(graph: Graph, metrics: Sequence[Metric]) -> None:
    needs = next((metric.name for metric in metrics if metric.of_choices), None)
    if needs is None:
        return
    spec = answering(graph.spec, graph.folder)
    agent = spec.speaker(spec.output)
    model = spec.models.get(agent.model)
    if hasattr(model, "base_url"):
        raise InputError(
            f"the metric {needs!r} needs probabilities, and the output agent {spec.output!r} is behind an endpoint; "
            "take a metric of replies, such as 'contains'"
        )
    if agent.generate.max_new_tokens == 0:
        raise InputError(
            f"the metric {needs!r} scores replies, and the output agent {spec.output!r} writes none "
            "(max_new_tokens: 0); make an agent that answers the output"
        )
