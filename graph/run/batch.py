"""Many runs at once."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from cachegraph.common.run_all import run_all
from cachegraph.errors import InputError, RunError

from .result import Result
from .run import Run
from .stream import Feed, Stream

__all__ = ["OnResult", "RowResult", "each_row", "run_rows", "stream_rows"]

T = TypeVar("T")


@dataclass(frozen=True)
class RowResult:
    """One ended row of `Graph.map`, and the overall progress."""

    index: int  # 0-based row number
    result: Result  # has status `failed` if the run failed
    done: int  # rows that have ended, including this one
    total: int


def each_row(rows: Iterable[Mapping[str, Any]], make: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """Call `make` for each row before any row runs. Raises its InputError with the row's number."""
    made = []
    for number, row in enumerate(rows):
        try:
            made.append(make(row))
        except InputError as error:
            raise InputError(f"row {number}: {error}") from error
    return made


OnResult = Callable[[RowResult], object]


async def run_rows(
    runs: Sequence[Run], max_concurrent: int, return_errors: bool, on_result: OnResult | None = None
) -> list[Result]:
    """Execute all runs. A failed run does not stop the others; see `Graph.amap`.

    Calls `on_result` for each row as it ends; an exception from it cancels all rows. Raises RunError, with all results,
    if a run failed, InputError for `max_concurrent` below 1.
    """
    if max_concurrent < 1:
        raise InputError(f"max_concurrent must be 1 or more, not {max_concurrent}")
    failed: dict[int, RunError] = {}
    done = 0

    async def execute(number: int, run: Run) -> None:
        try:
            await run.execute()
        except RunError as error:  # other errors, such as a failed model load, would fail every row
            failed[number] = error
        nonlocal done
        done += 1
        if on_result is not None:
            on_result(RowResult(number, run.result, done, len(runs)))

    await run_all([partial(execute, number, run) for number, run in enumerate(runs)], max_concurrent)
    results = [run.result for run in runs]
    if failed and not return_errors:
        number = min(failed)
        raise RunError(
            f"{len(failed)} of {len(runs)} rows failed; row {number}: {failed[number]}", results
        ) from failed[number]
    return results


def stream_rows(create: Callable[[], Awaitable[Sequence[Run]]], max_concurrent: int) -> Stream[RowResult]:
    """Stream the rows' results as they end; see `Graph.stream_map`. The first read creates the runs."""
    feed = Feed[RowResult]()

    async def work() -> None:
        await run_rows(await create(), max_concurrent, True, feed)

    return Stream(work, feed)
