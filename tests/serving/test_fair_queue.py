"""Tenants take turns in the queue, and none of them fills it."""

from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint

from cachegraph.serving.errors import ApiError
from cachegraph.serving.fair_limiter import FairLimiter
from cachegraph.serving.run_queue import RunQueue

pytestmark = pytest.mark.anyio


class Work:
    """Blocks that run until they are let go; `order` is that in which they began."""

    def __init__(self, places: int):
        self.limiter, self.order, self.release = FairLimiter(places), list[str](), anyio.Semaphore(0)

    async def one(self, name: str) -> None:
        async with self.limiter.turn(name[0]):
            self.order.append(name)
            await self.release.acquire()


async def settle() -> None:
    for _ in range(20):
        await checkpoint()


async def test_a_tenant_with_many_runs_does_not_keep_another_waiting() -> None:
    work = Work(1)
    async with anyio.create_task_group() as group:
        for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
            group.start_soon(work.one, name)
            await settle()
        for _ in range(6):
            work.release.release()
            await settle()
    assert work.order == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_a_free_place_goes_to_the_tenant_with_the_fewest_runs() -> None:
    work = Work(2)
    async with anyio.create_task_group() as group:
        for name in ("a1", "a2", "a3", "b1", "b2"):
            group.start_soon(work.one, name)
            await settle()
        work.release.release()
        await settle()
        assert work.order == ["a1", "a2", "b1"]
        for _ in range(4):
            work.release.release()
            await settle()
    assert sorted(work.order) == ["a1", "a2", "a3", "b1", "b2"]


async def test_whoever_stops_waiting_leaves_no_place_behind() -> None:
    work = Work(1)
    async with anyio.create_task_group() as group:
        group.start_soon(work.one, "a1")
        await settle()
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(work.one, "b1")
            await settle()
            work.release.release()  # the place is given to b1 while it is cancelled
            leaving.cancel_scope.cancel()
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(work.one, "c1")
            leaving.start_soon(work.one, "c2")
            await settle()
            leaving.cancel_scope.cancel()
        work.release.release()
        with anyio.fail_after(60):
            await work.one("d1")
    assert work.order[-1] == "d1"
    assert not work.limiter._waiting
    assert not work.limiter._running


def test_one_of_several_tenants_takes_half_of_the_places_at_most() -> None:
    queue = RunQueue(2, 6, tenants=3)
    queue.take("a", 4)
    for _ in range(3):
        with pytest.raises(ApiError, match="4 runs of yours are at work or wait") as refused:
            queue.take("a")
    assert (refused.value.status, queue.refused) == (429, 3)
    queue.take("b", 4)
    with pytest.raises(ApiError, match="which is all this server takes on;"):
        queue.take("c")
    queue.give_back("a", 4)
    queue.take("c")
    assert queue.reserved == 5


@pytest.mark.parametrize("tenants", [1, 2])
def test_the_smallest_queue_takes_a_run_of_anybody(tenants: int) -> None:
    queue = RunQueue(1, 0, tenants)
    queue.take("a")
    with pytest.raises(ApiError):
        queue.take("b")
    queue.give_back("a")
    queue.take("b")


def test_a_single_tenant_has_all_places() -> None:
    queue = RunQueue(2, 6)
    take = partial(queue.take, None)
    for _ in range(8):
        take()
    with pytest.raises(ApiError):
        take()
