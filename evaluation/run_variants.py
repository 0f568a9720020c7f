"""Run all examples of all variants with bounded concurrency, and write each record as soon as it exists."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
    reason, which is known before the first record.
    """

    variant: str
    seed: int
    done: int
    total: int
    made: int
    refused: Mapping[str, str] = {}


async def run_variants(
    runs: Sequence[VariantRun],
    examples: Sequence[Example],
    results: ResultsFile,
    concurrency: int,
    on_progress: Callable[[Progress], None] | None,
    refused: Mapping[str, str],
) -> None:
    """Run the examples that `results` has no record of. An example's own error becomes part of its record.

    Raises the error of writing a record.
    """
    todo = [(run, _missing(run, examples, results)) for run in runs]
    left = sum(len(indices) for _, indices in todo)
    total, made = len(runs) * len(examples), 0

    def report(run: VariantRun) -> None:
        if on_progress is not None:
            on_progress(Progress(run.variant, run.seed, total - left + made, total, made, refused))

    def add(run: VariantRun, record: ExampleRecord) -> None:
        nonlocal made
        results.add(record)
        made += 1
        report(run)

    if first := next(((run, indices[0]) for run, indices in todo if indices), None):
        await _run_one(first[0], examples, first[1])  # a warm-up: a model's first run is slower than all others
    for run, indices in todo:
        report(run)
        await _run_missing(run, examples, indices, concurrency, add)


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
