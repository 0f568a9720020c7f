"""Threads that cancelled callers leave behind."""

import gc
import threading
import weakref

import anyio
import pytest

from cachegraph.common.abandoned_threads import acquire_in_thread, run_or_abandon

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


@pytest.mark.parametrize("abandon", [True, False])
async def test_what_a_thread_acquires_for_a_cancelled_caller_is_released(abandon: bool) -> None:
    started, leaves, released = threading.Event(), threading.Event(), list[str]()

    def acquire() -> str:
        started.set()
        leaves.wait(60)
        return "lease"

    async def hold() -> None:
        try:
            released.append(await acquire_in_thread(acquire, released.append, abandon=abandon))
        finally:
            leaves.set()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(hold)
            while not started.is_set():  # noqa: ASYNC110  (another thread sets it)
                await anyio.sleep(0.005)
            if not abandon:
                leaves.set()
            group.cancel_scope.cancel()
        while released != ["lease"]:  # noqa: ASYNC110
            await anyio.sleep(0.005)


async def test_what_a_thread_acquires_stays_the_callers() -> None:
    released = list[str]()
    assert await acquire_in_thread(lambda: "lease", released.append) == "lease"
    with pytest.raises(ValueError, match="invalid literal"):
        await acquire_in_thread(lambda: str(int("seven")), released.append)
    assert released == []
