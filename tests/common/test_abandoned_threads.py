"""Threads that cancelled callers leave behind."""

import gc
import threading
import weakref

import anyio
import pytest

from cachegraph.common.abandoned_threads import run_or_abandon

pytestmark = pytest.mark.anyio


class Large: ...


async def test_an_abandoned_threads_error_is_freed_without_the_collector() -> None:
    started, leaves = threading.Event(), threading.Event()
    held: list[weakref.ref[Large]] = []

    def fail() -> None:
        large = Large()
        held.append(weakref.ref(large))
        started.set()
        leaves.wait(60)
        raise ValueError("nobody waits for this")

    gc.collect()
    gc.disable()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(run_or_abandon, fail)
            while not started.is_set():  # noqa: ASYNC110  (another thread sets it)
                await anyio.sleep(0.005)
            group.cancel_scope.cancel()
        leaves.set()
        with anyio.fail_after(60):
            while held[0]() is not None:  # noqa: ASYNC110
                await anyio.sleep(0.005)
    finally:
        gc.enable()


async def test_a_thread_returns_or_raises_what_its_work_does() -> None:
    assert await run_or_abandon(lambda: 7) == 7
    with pytest.raises(ValueError, match="invalid literal"):
        await run_or_abandon(lambda: int("seven"))
