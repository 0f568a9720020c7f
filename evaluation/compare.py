"""The comparison itself: check everything, load the models, play every variant's examples, sum up."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path

from cachegraph.channels.spec import CHANNELS
from cachegraph.engine.batching.request_context import current_context, request_context
from cachegraph.errors import CachegraphError
from cachegraph.graph.data.dataset import Rows
from cachegraph.graph.data.examples import data_hash
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.load import dump_recipe, included
from cachegraph.graph.run.sync import wait

from .comparison import Comparison, MetricInfo
from .environment import Environment, batches_exactly, describe
from .metrics import UserMetric
from .results_file import ResultsFile
from .run_example import Play
from .run_variants import Progress, Round, play_rounds
from .summary import summarise
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
    task = make_task(graph, rows, variants, metrics, columns, limit, seed, seeds, concurrency)
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
    out: str | PathLike[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """`compare`, under asyncio or trio."""
    task = make_task(graph, rows, variants, metrics, columns, limit, seed, seeds, concurrency)
    return await _compare(task, out, on_progress)


def run_task(
    task: Task, out: str | PathLike[str] | None = None, on_progress: Callable[[Progress], None] | None = None
) -> Comparison:
    """Do what was asked for and checked, and wait."""
    return wait(lambda: _compare(task, out, on_progress), "compare", "acompare", lambda: None)


def default_results_file(graph: Graph, rows: Rows, settings: Mapping[str, object]) -> Path:
    """A name in the working folder that is the same for the same recipe, data and settings."""
    source = str(rows) if isinstance(rows, str | PathLike) else ""
    return Path(f"cachegraph-compare-{_hash([graph.to_yaml(), source, dict(settings)])[:12]}.jsonl")


async def _compare(
    task: Task,
    out: str | PathLike[str] | None,
    on_progress: Callable[[Progress], None] | None,
) -> Comparison:
    wiring = await task.graph.with_channels("text").awire()
    environment = describe(wiring)
    many = task.concurrency or (BATCH if batches_exactly(wiring) else 1)
    _complete_facts(environment, task, many)
    header = {"environment": environment.model_dump(), "graph": task.graph.spec.name}
    journal = ResultsFile(Path(out) if out is not None else None, environment.key, header)
    derived: list[Graph] = []
    try:
        rounds, refused, cards, dropped = await _rounds(task, derived)
        with request_context(replace(current_context(), reuse=False)):  # a variant must not find what another has read
            variants = [
                Variant(each.name, each.records, why_not=refused[each.records]) if each.records in refused else each
                for each in task.variants
            ]
            why_not = {each.name: each.why_not for each in variants if each.why_not is not None}
            await play_rounds(rounds, task.examples, journal, many, on_progress, why_not)
    finally:
        journal.close()
        for graph in derived:
            await graph.aclose()
    found = _sum_up(task, variants, journal, environment, cards)
    found.warnings += dropped
    return found


async def _rounds(task: Task, derived: list[Graph]) -> tuple[list[Round], dict[str, str], Cards, list[str]]:
    """What is to be played, by variant why it can't be, the cards of the fusers in use, and what channels drop.

    Graphs with models of their own go to `derived`.
    """
    cards: Cards = {}
    dropped: list[str] = []
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
                wiring = await graph.awire()
            except CachegraphError as error:
                refused[variant.records] = str(error)
                break
            cards |= cards_of(wiring)
            if variant.name in CHANNELS:  # the other variants take something away on purpose
                dropped += [f"{variant.name}: {each}" for each in wiring.warnings if each.kind == "dropped"]
            how = Play(variant.records, seed, graph, variant.control, task.scores)
            rounds.append(Round(how, task.partners[seed] if variant.control == "mismatched" else None))
    return rounds, refused, cards, list(dict.fromkeys(dropped))


def _complete_facts(environment: Environment, task: Task, concurrency: int) -> None:
    inner = [dump_recipe(spec) for spec, _ in included(task.graph.spec, task.graph.folder)]
    environment.recipe_hash = _hash([task.graph.to_yaml(), *inner] if inner else task.graph.to_yaml())
    environment.data, environment.data_hash = task.data, data_hash(task.examples)
    environment.rows, environment.limit, environment.seeds = task.rows, task.limit, task.seeds
    environment.concurrency = concurrency
    environment.started = datetime.now(UTC).isoformat(timespec="seconds")
    same = environment.model_dump(exclude={"key", "started", "memory_bytes", "rows", "data", "command"})
    environment.key = _hash([same, task.scores])


def _sum_up(
    task: Task, variants: list[Variant], journal: ResultsFile, environment: Environment, cards: Cards
) -> Comparison:
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
        warnings=doubts(summary.rows, summary.differences, metrics, task.examples, cards),
        environment=environment,
        examples=task.examples,
        records=records,
        results_file=journal.path.name if journal.path is not None else None,
    )


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
