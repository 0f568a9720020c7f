"""The comparison itself: check everything, load the models, play every variant's examples, sum up."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from os import PathLike
from pathlib import Path

from cachegraph.errors import CachegraphError, InputError
from cachegraph.graph.blocking import wait
from cachegraph.graph.graph import Graph

from .comparison import Comparison, MetricInfo
from .data import Rows, read_rows
from .environment import Environment, batches_exactly, describe
from .examples import Example, data_hash, make_examples, merge_mapping
from .journal import Journal
from .metrics import Metric, UserMetric, pick_metrics
from .partners import partners, sample
from .play import Play
from .rounds import Progress, Round, play_rounds
from .summary import summarise
from .variants import DEFAULT, Variant, make_variants, seeded
from .verdict import verdicts

__all__ = ["Progress", "acompare", "compare", "default_results_file"]

BATCH = 8  # examples at a time, where batches don't change bits


@dataclass(frozen=True)
class _Task:
    """What was asked for, checked: nothing here needs a model."""

    graph: Graph
    examples: list[Example]
    rows: int
    data: str
    metrics: list[Metric]
    variants: list[Variant]
    seeds: list[int]
    limit: int | None
    partners: dict[int, list[Example] | None]  # by seed

    @property
    def scores(self) -> bool:
        return any(metric.of_choices for metric in self.metrics)


def compare(
    graph: Graph,
    rows: Rows,
    *,
    variants: Sequence[str] = DEFAULT,
    metrics: Sequence[str | UserMetric] | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    concurrency: int | None = None,
    out: str | PathLike[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Run a graph's variants on the same examples and say which is better, and wait.

    `rows` is a file (JSON Lines, JSON, CSV), a hub data set's name, or mappings; `columns` maps inputs and roles to
    columns, over what the recipe says. `metrics` are names of `evaluation.metrics.METRICS`, functions of an example and
    a reply, or their 'module:function'. `limit` examples are drawn by `seed`. With `seeds` above 1, sampling agents and
    the mismatched control are repeated with `seed`, `seed + 1`, ... `concurrency` examples run at a time; by default as
    many as give the same bits as one at a time. Finished results go to the file `out`, and an interrupted comparison
    goes on from there.
    """
    task = _task(graph, rows, variants, metrics, columns, limit, seed, seeds, concurrency)
    work = partial(_compare, task, concurrency, out, on_progress)
    return wait(work, "compare", "acompare", lambda: None)


async def acompare(
    graph: Graph,
    rows: Rows,
    *,
    variants: Sequence[str] = DEFAULT,
    metrics: Sequence[str | UserMetric] | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    concurrency: int | None = None,
    out: str | PathLike[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """`compare`, under asyncio or trio."""
    task = _task(graph, rows, variants, metrics, columns, limit, seed, seeds, concurrency)
    return await _compare(task, concurrency, out, on_progress)


def default_results_file(graph: Graph, rows: Rows, settings: Mapping[str, object]) -> Path:
    """A name in the working folder that is the same for the same recipe, data and settings."""
    source = str(rows) if isinstance(rows, str | PathLike) else ""
    return Path(f"cachegraph-compare-{_hash([graph.to_yaml(), source, dict(settings)])[:12]}.jsonl")


def _task(
    graph: Graph,
    source: Rows,
    names: Sequence[str],
    wanted: Sequence[str | UserMetric] | None,
    columns: Mapping[str, str] | None,
    limit: int | None,
    seed: int,
    seeds: int,
    concurrency: int | None,
) -> _Task:
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
    return _Task(graph, picked, len(rows), data, metrics, variants, every, limit, pairs)


def _check_scoring(graph: Graph, metrics: Sequence[Metric]) -> None:
    needs = next((metric.name for metric in metrics if metric.of_choices), None)
    if needs is None:
        return
    agent = graph.spec.agents[graph.output]
    model = graph.spec.models.get(agent.model)
    if hasattr(model, "base_url"):
        raise InputError(
            f"the metric {needs!r} needs probabilities, and the output agent {graph.output!r} is behind an endpoint; "
            "take a metric of replies, such as 'contains'"
        )
    if agent.generate.max_new_tokens == 0:
        raise InputError(
            f"the metric {needs!r} scores replies, and the output agent {graph.output!r} writes none "
            "(max_new_tokens: 0); make an agent that answers the output"
        )


async def _compare(
    task: _Task,
    concurrency: int | None,
    out: str | PathLike[str] | None,
    on_progress: Callable[[Progress], None] | None,
) -> Comparison:
    base = task.graph.with_channels("text") if task.graph.spec.edges else task.graph
    environment = describe(await base.awire())
    many = concurrency or (BATCH if batches_exactly(environment.models) else 1)
    _complete_facts(environment, task, many)
    header = {"environment": environment.model_dump(), "graph": task.graph.spec.name}
    journal = Journal(Path(out) if out is not None else None, environment.key, header)
    derived: list[Graph] = []
    try:
        rounds, refused = await _rounds(task, derived)
        await play_rounds(rounds, task.examples, journal, many, on_progress)
    finally:
        journal.close()
        for graph in derived:
            await graph.aclose()
    variants = [
        Variant(each.name, each.records, why_not=refused[each.records]) if each.records in refused else each
        for each in task.variants
    ]
    return _sum_up(task, variants, journal, environment)


async def _rounds(task: _Task, derived: list[Graph]) -> tuple[list[Round], dict[str, str]]:
    """What is to be played, and by variant why it can't be. Graphs with models of their own go to `derived`."""
    rounds: list[Round] = []
    refused: dict[str, str] = {}
    for variant in task.variants:
        if variant.graph is None or variant.records in refused or variant.records in {each.variant for each in rounds}:
            continue
        repeats = variant.control == "mismatched" or seeded(variant.graph, 0) is not None
        for seed in task.seeds if repeats else task.seeds[:1]:
            graph = seeded(variant.graph, seed) or variant.graph
            if variant.owns or graph is not variant.graph:
                derived.append(graph)
            try:
                await graph.awire()
            except CachegraphError as error:
                refused[variant.records] = str(error)
                break
            how = Play(variant.records, seed, graph, variant.control, task.scores)
            rounds.append(Round(how, task.partners[seed] if variant.control == "mismatched" else None))
    return rounds, refused


def _complete_facts(environment: Environment, task: _Task, concurrency: int) -> None:
    environment.recipe_hash = _hash(task.graph.to_yaml())
    environment.data, environment.data_hash = task.data, data_hash(task.examples)
    environment.rows, environment.limit, environment.seeds = task.rows, task.limit, task.seeds
    environment.concurrency = concurrency
    environment.started = datetime.now(UTC).isoformat(timespec="seconds")
    same = environment.model_dump(exclude={"key", "started", "memory_bytes", "rows", "data"})
    environment.key = _hash([same, task.scores])


def _sum_up(task: _Task, variants: list[Variant], journal: Journal, environment: Environment) -> Comparison:
    shown = {variant.records for variant in variants}
    order = {example.index: place for place, example in enumerate(task.examples)}
    records = [
        record
        for record in journal.records.values()
        if record.variant in shown and record.index in order and record.seed in task.seeds
    ]
    records.sort(key=lambda record: (record.variant, record.seed, order[record.index]))
    summary = summarise(variants, records, task.examples, task.metrics, task.seeds[0])
    metrics = [MetricInfo(name=metric.name, unit=metric.unit) for metric in task.metrics]
    return Comparison(
        graph=task.graph.spec.name,
        recipe=task.graph.to_yaml(),
        metrics=metrics,
        rows=summary.rows,
        differences=summary.differences,
        verdicts=verdicts(summary.rows, summary.differences, metrics[0]),
        environment=environment,
        examples=task.examples,
        records=records,
        results_file=journal.path.name if journal.path is not None else None,
    )


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
