"""`compare` and `acompare`: check the request, load the models, run all variants, summarise."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path

import anyio

from cachegraph.channels.fusers.files.card import read_card
from cachegraph.channels.payload import KVSpan
from cachegraph.channels.spec import CHANNELS
from cachegraph.engine.batching.request_context import current_context, request_context
from cachegraph.errors import CachegraphError, ChannelError
from cachegraph.graph.data.dataset import Rows
from cachegraph.graph.data.examples import data_hash
from cachegraph.graph.graph import Graph
from cachegraph.graph.plan.wiring import Wiring
from cachegraph.graph.recipe.load import dump_recipe, included
from cachegraph.graph.run.subgraph import answering_node
from cachegraph.graph.run.sync import wait

from .agreement import agreements
from .categories import by_category
from .comparison import Agreement, ByColumn, Comparison, MetricInfo
from .cost.collect import kept_curves
from .edges import edge_sentences, edge_worths
from .environment import Environment, batches_exactly, describe
from .metrics import UserMetric
from .records import ExampleRecord
from .results_file import ResultsFile
from .run_example import VariantRun
from .run_variants import Progress, run_variants
from .summary import Summary, summarise
from .task import Task, make_task
from .variants import DEFAULT, Variant, seeded
from .verdict import verdicts
from .warnings import Cards, cards_of, doubts

__all__ = ["Progress", "acompare", "compare", "default_results_file", "run_task"]

BATCH = 8  # examples at a time, where batches don't change bits


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
    by: str | None = None,
    edges: bool = False,
    out: str | PathLike[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Run a graph's variants on the same examples and say which is better. Blocks until it is done.

    `rows` is a file (JSON Lines, JSON, CSV), a hub data set's name, or a list of mappings. `columns` maps inputs and
    roles to columns and overrides the recipe. `metrics` are names of `evaluation.metrics.METRICS`, functions of an
    example and a reply, or their 'module:function'. `seed` draws `limit` examples. With `seeds` above 1, sampling
    agents and the mismatched control are repeated with `seed`, `seed + 1`, ... `concurrency` examples run at a time;
    the default is 8 where batching changes no bit of a result, else 1. `by` names a column of the data; its values are
    categories, and each gets results of its own. `edges` adds variants that swap one edge at a time. Each finished
    result is written to the file `out`, from which an interrupted comparison continues.
    """
    task = make_task(graph, rows, variants, metrics, columns, limit, seed, seeds, concurrency, by, edges)
    return run_task(task, out, on_progress)


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
    by: str | None = None,
    edges: bool = False,
    out: str | PathLike[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """`compare`, under asyncio or trio."""
    task = make_task(graph, rows, variants, metrics, columns, limit, seed, seeds, concurrency, by, edges)
    return await _compare(task, out, on_progress)


def run_task(
    task: Task, out: str | PathLike[str] | None = None, on_progress: Callable[[Progress], None] | None = None
) -> Comparison:
    """Run a checked comparison. Blocks until it is done."""
    return wait(lambda: _compare(task, out, on_progress), "compare", "acompare", lambda: None)


def default_results_file(graph: Graph, rows: Rows, settings: Mapping[str, object]) -> Path:
    """A file name in the working folder, equal for equal recipe, data and settings."""
    source = str(rows) if isinstance(rows, str | PathLike) else ""
    return Path(f"cachegraph-compare-{_hash([graph.to_yaml(), source, dict(settings)])[:12]}.jsonl")


async def _compare(
    task: Task,
    out: str | PathLike[str] | None,
    on_progress: Callable[[Progress], None] | None,
) -> Comparison:
    wiring = await task.graph.with_channels("text").awire()
    environment = describe(wiring)
    concurrency = task.concurrency or (BATCH if batches_exactly(wiring) else 1)
    _complete_environment(environment, task, concurrency)
    header = {"environment": environment.model_dump(), "graph": task.graph.spec.name}
    results = ResultsFile(Path(out) if out is not None else None, environment.key, header)
    derived: list[Graph] = []
    try:
        runs, refused, cards, dropped = await _variant_runs(task, derived)
        with request_context(replace(current_context(), reuse=False)):  # a variant must not find what another has read
            variants = [
                Variant(variant.name, variant.records, why_not=refused[variant.records])
                if variant.records in refused
                else variant
                for variant in task.variants
            ]
            why_not = {variant.name: variant.why_not for variant in variants if variant.why_not is not None}
            await run_variants(runs, task.examples, results, concurrency, on_progress, why_not, bool(task.edges))
    finally:
        results.close()
        for graph in derived:
            await graph.aclose()
    comparison = _sum_up(task, variants, results, environment, cards)
    comparison.warnings += dropped
    comparison.costs = kept_curves(task.graph)
    comparison.edges = edge_worths(comparison, task.edges, task.text_only)
    comparison.verdicts += edge_sentences(comparison.edges)
    return comparison


async def _variant_runs(task: Task, derived: list[Graph]) -> tuple[list[VariantRun], dict[str, str], Cards, list[str]]:
    """The runs, the reason by variant that can't run, the cards of the fusers in use, and what channels drop.

    Appends graphs that the caller must close to `derived`.
    """
    cards: Cards = {}
    dropped: list[str] = []
    runs: list[VariantRun] = []
    refused: dict[str, str] = {}
    for variant in task.variants:
        if variant.graph is None or variant.records in refused or variant.records in {run.variant for run in runs}:
            continue
        repeats = variant.control == "mismatched" or seeded(variant.graph, 0) is not None
        for seed in task.seeds if repeats else task.seeds[:1]:
            graph = seeded(variant.graph, seed) or variant.graph
            if variant.owns or graph is not variant.graph:
                derived.append(graph)
            try:
                wiring = await graph.awire()
                prefix = await _prefix(variant, wiring)
            except CachegraphError as error:
                refused[variant.records] = str(error)
                break
            cards |= cards_of(wiring)
            if variant.prefix is not None:
                cards[variant.name] = read_card(variant.prefix)
            if variant.name in CHANNELS:  # the other variants take something away on purpose
                dropped += [f"{variant.name}: {warning}" for warning in wiring.warnings if warning.kind == "dropped"]
            donors = task.donors[seed] if variant.control == "mismatched" else None
            runs.append(VariantRun(variant.records, seed, graph, variant.control, task.scores, donors, prefix))
    return runs, refused, cards, list(dict.fromkeys(dropped))


async def _prefix(variant: Variant, wiring: Wiring) -> KVSpan | None:
    """The variant's trained prefix as entries of the output agent's model. Raises FuserError or ChannelError."""
    if variant.prefix is None:
        return None
    name, node = answering_node(wiring)
    engine = node.agent.peer().engine
    if engine is None:
        raise ChannelError(f"a trained prefix needs the model of agent {name!r} in this process")
    from cachegraph.channels.cache.prefix import prefix_span

    return await anyio.to_thread.run_sync(prefix_span, variant.prefix, engine.model)


def _complete_environment(environment: Environment, task: Task, concurrency: int) -> None:
    inner = [dump_recipe(spec) for spec, _ in included(task.graph.spec, task.graph.folder)]
    environment.recipe_hash = _hash([task.graph.to_yaml(), *inner] if inner else task.graph.to_yaml())
    environment.data, environment.data_hash = task.data, data_hash(task.examples)
    environment.rows, environment.limit, environment.seeds = task.rows, task.limit, task.seeds
    environment.concurrency = concurrency
    environment.started = datetime.now(UTC).isoformat(timespec="seconds")
    same = environment.model_dump(exclude={"key", "started", "memory_bytes", "rows", "data", "command"})
    environment.key = _hash([same, task.scores])


def _sum_up(
    task: Task, variants: list[Variant], results: ResultsFile, environment: Environment, cards: Cards
) -> Comparison:
    shown = {variant.records for variant in variants}
    order = {example.index: place for place, example in enumerate(task.examples)}
    records = [
        record
        for record in results.records.values()
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
        agreements=_agreements(task, summary, records),
        by=_by_category(task, variants, records),
        verdicts=verdicts(summary.rows, summary.differences, metrics[0]),
        warnings=doubts(summary.rows, summary.differences, metrics, task.examples, cards),
        environment=environment,
        examples=task.examples,
        records=records,
        results_file=results.path.name if results.path is not None else None,
    )


def _agreements(task: Task, summary: Summary, records: Sequence[ExampleRecord]) -> list[Agreement]:
    failed = {record.index for record in records if record.error is not None}
    by_variant = {row.name: [record for record in records if record.variant == row.recorded_as] for row in summary.rows}
    complete = [example for example in task.examples if example.index not in failed]
    return agreements(summary.rows, by_variant, complete, task.seeds[0])


def _by_category(task: Task, variants: Sequence[Variant], records: Sequence[ExampleRecord]) -> ByColumn | None:
    if task.by is None:
        return None
    return by_category(task.by, task.categories, variants, records, task.examples, task.metrics, task.seeds[0])


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
