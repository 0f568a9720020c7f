"""Requests of an engine at the same time: what it does with them is then no matter of how fast it is."""

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from cachegraph.engine.engine import Engine


async def gather(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    results: list[Any] = [None] * len(calls)

    async def run(index: int, call: Callable[[], Awaitable[Any]]) -> None:
        results[index] = await call()

    async with anyio.create_task_group() as group:
        for index, call in enumerate(calls):
            group.start_soon(run, index, call)
    return results


async def in_one_batch(engine: Engine, *calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """The engine looks at none of these requests before all have arrived."""
    closed, go = threading.Event(), threading.Event()

    def gate() -> None:
        closed.set()
        go.wait()

    async def open_gate() -> None:
        await anyio.wait_all_tasks_blocked()
        go.set()

    async with anyio.create_task_group() as group:
        group.start_soon(engine.call, gate)
        await anyio.to_thread.run_sync(closed.wait)
        *results, _ = await gather(*calls, open_gate)
    return results
