"""Many runs at once: as many at a time as asked for, results in the order they were asked for."""

from collections.abc import Sequence

import anyio

from cachegraph.errors import InputError, RunError

from .result import Result
from .runtime import Run

__all__ = ["run_rows"]


async def run_rows(runs: Sequence[Run], max_concurrent: int, return_errors: bool) -> list[Result]:
    """Execute all runs. One that fails leaves the others alone; see `Graph.amap`."""
    if max_concurrent < 1:
        raise InputError(f"max_concurrent must be 1 or more, not {max_concurrent}")
    todo = iter(enumerate(runs))
    failed: dict[int, RunError] = {}
    fatal: list[Exception] = []

    async def work() -> None:
        for number, run in todo:
            try:
                await run.execute()
            except RunError as error:
                failed[number] = error
            except Exception as error:  # a model that can't be loaded fails every row: stop here
                fatal.append(error)
                group.cancel_scope.cancel()
                return

    async with anyio.create_task_group() as group:
        for _ in range(min(max_concurrent, len(runs))):
            group.start_soon(work)
    if fatal:
        raise fatal[0]
    results = [run.result for run in runs]
    if failed and not return_errors:
        number = min(failed)
        raise RunError(
            f"{len(failed)} of {len(runs)} rows failed; row {number}: {failed[number]}", results
        ) from failed[number]
    return results
