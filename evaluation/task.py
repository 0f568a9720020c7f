"""The request of a comparison: examples, variants, metrics and settings, checked before any model is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from cachegraph.errors import InputError
from cachegraph.graph.data.dataset import Rows, read_rows
from cachegraph.graph.data.examples import Example, make_examples, merge_mapping
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.load import answering

from .categories import category_of_rows
from .derangement import derange, sample
from .edges import capable_edges
from .metrics import Metric, UserMetric, pick_metrics
from .variants import Variant, edge_variants, make_variants

__all__ = ["Task", "make_task"]


@dataclass(frozen=True)
class Task:
    """A checked comparison. `rows` counts the examples of the whole data, `data` is its name."""

    graph: Graph
    examples: list[Example]
    rows: int
    data: str
    metrics: list[Metric]
    variants: list[Variant]
    seeds: list[int]
    limit: int | None
    donors: dict[int, list[Example] | None]  # by seed, for the mismatched control
    concurrency: int | None
    by: str | None = None  # the column whose values are categories
    categories: dict[int, str] = field(default_factory=dict)  # by index of the sampled examples
    edges: list[tuple[str, str]] = field(default_factory=list)  # each is swapped alone
    text_only: dict[tuple[str, str], str] = field(default_factory=dict)  # edges that can't be, and the reason

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
    by: str | None = None,
    edges: bool = False,
) -> Task:
    """Read and check everything. Raises InputError, which names the row and column of a wrong value."""
    for name, value in (("limit", limit), ("seeds", seeds), ("concurrency", concurrency)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be 1 or more, not {value}")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, not {seed}")
    spec = graph.validate().spec
    rows = read_rows(source)
    examples = make_examples(rows, spec, merge_mapping(spec.evaluate, columns or {}, list(spec.inputs)))
    categories = category_of_rows(rows, by) if by is not None else []
    metrics = pick_metrics(wanted, examples[0])
    _check_scoring(graph, metrics)
    sampled = sample(examples, limit, seed)
    capable, text_only = capable_edges(graph) if edges else ([], {})
    if edges and not capable:
        reason = next(iter(text_only.values()), "it has none")
        raise InputError(f"no edge of the recipe can carry a cache ({reason}), so there is no edge to swap")
    variants = make_variants(edge_variants(names, capable) if edges else names, graph, len(sampled))
    all_seeds = list(range(seed, seed + seeds))
    donors = {run_seed: derange(sampled, run_seed) if len(sampled) > 1 else None for run_seed in all_seeds}
    if donors[seed] is None:
        why = "all examples have the same inputs, so every cache is the right one"
        variants = [
            Variant(variant.name, variant.records, why_not=why) if variant.control == "mismatched" else variant
            for variant in variants
        ]
    data = Path(source).name if isinstance(source, str | PathLike) else "rows given in Python"
    return Task(
        graph,
        sampled,
        len(rows),
        data,
        metrics,
        variants,
        all_seeds,
        limit,
        donors,
        concurrency,
        by,
        {example.index: categories[example.index] for example in sampled} if categories else {},
        capable,
        text_only,
    )


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
            "use a metric of replies, such as 'contains'"
        )
    if agent.generate.max_new_tokens == 0:
        raise InputError(
            f"the metric {needs!r} scores replies, and the output agent {spec.output!r} writes none "
            "(max_new_tokens: 0); make an agent that answers the output"
        )
