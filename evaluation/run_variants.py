"""Run all examples of all variants with bounded concurrency, and write each record as soon as it exists."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import NamedTuple

import anyio

from cachegraph.common.run_all import run_all
from cachegraph.graph.data.examples import Example

from .peak_memory import PeakMemory
from .records import ExampleRecord
from .results_file import ResultsFile
from .run_example import VariantRun, run_example

__all__ = ["Progress", "run_variants"]

OnRecord = Callable[[VariantRun, ExampleRecord], None]


class Progress(NamedTuple):
    """How far a comparison is, in records.

    `done` of `total` records exist; this call made `made` of them. `refused` maps each variant that can't run to the
    reason, which is known before the first record. `seconds_left` is a forecast, once there is one.
    """

    variant: str
    seed: int
    done: int
    total: int
    made: int
    refused: Mapping[str, str] = {}
    seconds_left: float | None = None


async def run_variants(
    runs: Sequence[VariantRun],
    examples: Sequence[Example],
    results: ResultsFile,
    concurrency: int,
    on_progress: Callable[[Progress], None] | None,
    refused: Mapping[str, str],
    forecast: bool = False,
) -> None:
    """Run the examples that `results` has no record of. An example's own error becomes part of its record.

    With `forecast`, the first examples of every variant run first, and the time of the others is forecast from them.

    Raises the error of writing a record.
    """
    todo = [(run, _missing(run, examples, results)) for run in runs]
    left = sum(len(indices) for _, indices in todo)
    total, made = len(runs) * len(examples), 0

    def report(run: VariantRun, seconds_left: float | None = None) -> None:
        if on_progress is not None:
            done = total - left + made
            on_progress(Progress(run.variant, run.seed, done, total, made, refused, seconds_left))

    def add(run: VariantRun, record: ExampleRecord) -> None:
        nonlocal made
        results.add(record)
        made += 1
        report(run)

    async def work(run: VariantRun, indices: Sequence[int]) -> None:
        report(run)
        await _run_missing(run, examples, indices, concurrency, add)

    if first := next(((run, indices[0]) for run, indices in todo if indices), None):
        await _run_one(first[0], examples, first[1])  # a warm-up: a model's first run is slower than all others
    if forecast and todo:
        seconds = 0.0
        for run, indices in todo:
            began = perf_counter()
            await work(run, indices[:concurrency])
            seconds += (perf_counter() - began) * max(len(indices) - concurrency, 0) / concurrency
        todo = [(run, indices[concurrency:]) for run, indices in todo]
        report(todo[0][0], seconds)
    for run, indices in todo:
        await work(run, indices)


def _missing(run: VariantRun, examples: Sequence[Example], results: ResultsFile) -> list[int]:
    """The indices into `examples` that have no record yet."""
    return [i for i, example in enumerate(examples) if (run.variant, run.seed, example.index) not in results.records]


async def _run_one(run: VariantRun, examples: Sequence[Example], index: int) -> ExampleRecord:
    return await run_example(run, examples[index], run.donors[index] if run.donors is not None else None)


async def _run_missing(
    run: VariantRun, examples: Sequence[Example], indices: Sequence[int], concurrency: int, on_record: OnRecord
) -> None:
    peak = PeakMemory()

    async def work(index: int) -> None:
        record = await _run_one(run, examples, index)
        record.memory = peak.sample()
        on_record(run, record)

    failed: Exception | None = None
    async with anyio.create_task_group() as sampling:
        sampling.start_soon(peak.keep_sampling)
        try:
            await run_all([partial(work, index) for index in indices], concurrency)
        except Exception as error:  # raised below, so that the task group does not wrap it
            failed = error
        sampling.cancel_scope.cancel()
    if failed is not None:
        raise failed
