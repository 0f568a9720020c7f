"""Caches that the object store has no room for are computed again for their readers, and nothing waits for ever."""

import os
import signal
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import torch

from cachegraph import Graph
from cachegraph.engine.kv.cache import KV, LayerKV
from cachegraph.engine.spec import ModelSpec

pytest.importorskip("ray")
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")]

Specs = dict[str, ModelSpec]
SHORT = {"max_new_tokens": 8, "ignore_eos": True}


def relay(models: Specs) -> Graph:
    """Two readers whose caches meet, and a list whose caches are joined."""
    graph = Graph(models={"small": models["small"]}, output="judge")
    graph.add_input("document")
    for name in ("one", "two"):
        graph.add_agent(name, model="small", prompt=f"{{{{ document }}}} {name}", generate=SHORT)
    graph.add_agent("both", model="small", prompt="{{ one }} {{ two }} in short", generate=SHORT)
    graph.add_agent(
        "each",
        model="small",
        prompt="{{ word }} {{ both }}",
        for_each="document.split()[:3]",
        generate=SHORT,
        **{"as": "word"},
    )
    graph.add_agent("judge", model="small", prompt="{{ both }} {{ each }} why?", generate=SHORT)
    for sender, receiver in (("one", "both"), ("two", "both"), ("both", "each"), ("both", "judge"), ("each", "judge")):
        graph.add_edge(sender, receiver, "cache")
    return graph


@pytest.mark.parametrize("room", [0, 40_000])
def test_runs_that_need_more_than_the_store_has_finish_with_the_same_replies(
    models: Specs, cluster: Any, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    from cachegraph.cluster import store_budget
    from cachegraph.cluster.remote_agent import RemoteAgent

    rows = [{"document": f"the sky is {colour} and the sea, "} for colour in ("blue", "green", "red")]
    graph = relay(models)
    expected = [each.text for each in graph.map(rows)]
    again, most = [0], [0]
    rebuild, hold = RemoteAgent.rebuild, store_budget.StoreBudget.hold

    async def counted(agent: RemoteAgent, *given: Any) -> Any:
        again[0] += 1
        return await rebuild(agent, *given)

    def watched(budget: Any, *given: Any) -> Any:
        held = hold(budget, *given)
        most[0] = max([most[0], *budget._held.values()])
        return held

    budget = store_budget.StoreBudget(lambda: dict.fromkeys(stores, room * 2))
    stores = cluster._budget._find_stores()
    monkeypatch.setattr(cluster, "_budget", budget)
    monkeypatch.setattr(RemoteAgent, "rebuild", counted)
    monkeypatch.setattr(store_budget.StoreBudget, "hold", watched)
    with graph.on_cluster(cluster) as there:
        assert [each.text for each in there.map(rows, max_concurrent=3)] == expected
    graph.close()
    assert again[0]
    assert most[0] <= room
    deadline = monotonic() + 60
    while any(budget._held.values()):  # until the last replies are collected
        assert monotonic() < deadline
        sleep(0.05)


def wait_until_lost(refs: list[Any]) -> None:
    import ray
    from ray.exceptions import GetTimeoutError, ObjectLostError

    deadline = monotonic() + 60
    for ref in refs:
        with suppress(ObjectLostError):
            while monotonic() < deadline:
                with suppress(GetTimeoutError):
                    ray.get(ref, timeout=1)
                sleep(0.1)
            raise AssertionError("a cache outlives its replica")


@pytest.mark.parametrize("room", [0, 75 << 20])
def test_lost_caches_that_are_computed_again_are_kept_and_counted_if_they_fit(
    models: Specs, cluster: Any, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    from cachegraph.cluster import store_budget
    from cachegraph.cluster.remote_agent import RemoteAgent

    graph = relay(models)
    document = {"document": "the sky is blue and the sea, "}
    expected = graph.run(document)
    stores, kept, killed = cluster._budget._find_stores(), list[int](), list[int]()
    budget = store_budget.StoreBudget(lambda: dict.fromkeys(stores, 150 << 20))
    holds = budget.holds

    def watched(cache: Any) -> bool:
        kept.append(sum(budget._held.values()) if holds(cache) else 0)
        return holds(cache)

    async def after_a_death(agent: RemoteAgent, given: Any) -> Any:
        if agent.name == "both" and not killed:
            handles = [each for replicas in cluster.sets.values() for each in replicas.handles]
            killed.extend(each.facts.process for each in handles if each.facts)
            for process in killed:
                with suppress(ProcessLookupError):  # killed by an earlier test, and idle since
                    os.kill(process, signal.SIGKILL)
            caches = [each.payload.cache.segments for each in given.deliveries]
            refs = [chunk.ref for segments in caches for each in segments for chunk in each.tensors_at.chunks]
            await anyio.to_thread.run_sync(wait_until_lost, refs)
            monkeypatch.setattr(budget, "_stores", dict.fromkeys(stores, room * 2))
        return await turn(agent, given)

    monkeypatch.setattr(cluster, "_budget", budget)
    monkeypatch.setattr(budget, "holds", watched)
    turn = RemoteAgent.turn
    monkeypatch.setattr(RemoteAgent, "turn", after_a_death)
    with graph.on_cluster(cluster) as there:
        assert there.run(document).text == expected.text
    graph.close()
    assert killed
    assert kept
    assert all(kept) if room else not any(kept)
    assert not budget._gate._passing


def a_kv(size: int) -> KV:
    layer = LayerKV(torch.arange(2.0 * size).view(1, 2, size, 1), torch.ones(1, 2, size, 3))
    return KV((layer, LayerKV(layer.keys[:, :1], layer.values)), torch.arange(size))


def test_segments_of_one_cache_share_few_objects_and_come_back_as_they_were(cluster: Any) -> None:
    from cachegraph.cluster import object_store
    from cachegraph.cluster.stored_cache import CacheStore

    kvs = [a_kv(5), a_kv(0), a_kv(3), a_kv(70)]
    store, other = CacheStore(), CacheStore()
    stored = store.store([*kvs, kvs[0]])
    assert stored[4] is stored[0]
    assert len({chunk.ref for each in stored for chunk in each.tensors_at.chunks}) == 1

    async def fetch() -> list[KV]:
        return await other.fetch(stored, torch.device("cpu"))

    for kv, found in zip(kvs, anyio.run(fetch), strict=False):
        assert all(torch.equal(a, b) for a, b in zip(kv.tensors(), found.tensors(), strict=True))
        assert torch.equal(kv.positions, found.positions)
    assert sum(kv.nbytes for kv in kvs) < object_store.CHUNK_BYTES


@pytest.mark.parametrize("chunk", [1, 500, 4000])
def test_tensors_come_back_whatever_the_size_of_chunks(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    from cachegraph.cluster import object_store

    monkeypatch.setattr(object_store, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(object_store, "STACK_BYTES", chunk // 3)
    groups = [list(a_kv(size).tensors()) for size in (5, 30, 0, 7)]
    groups[1].append(torch.tensor(2.0).to(torch.bfloat16))
    places = object_store.store_tensors(groups)

    async def fetch() -> list[list[torch.Tensor]]:
        return await object_store.fetch_tensors(places[::-1])

    for tensors, found in zip(groups, anyio.run(fetch)[::-1], strict=True):
        assert len(tensors) == len(found)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tensors, found, strict=True))


def test_what_was_stored_lately_is_stored_once(cluster: Any) -> None:
    from cachegraph.cluster.stored_cache import CacheStore

    kv, large = a_kv(5), a_kv(50)
    store = CacheStore(kv.nbytes)
    (first,) = store.store([kv])
    (second,) = store.store([kv])
    assert second.id == first.id
    store.store([large])  # more than it remembers
    (third,) = store.store([kv])
    assert third.id != first.id


def test_those_who_borrow_more_than_there_is_pass_one_after_another_and_a_cancelled_one_leaves(cluster: Any) -> None:
    from cachegraph.cluster.store_budget import StoreBudget

    budget, passed, inside = StoreBudget(lambda: {"node": 400}), list[str](), [0]
    budget.room("node")

    async def one(name: str, nbytes: int) -> None:
        async with budget.borrow(nbytes):
            inside[0] += nbytes
            assert inside[0] <= 100 or inside[0] == nbytes
            async with budget.borrow(1000):  # of a turn whose own caches are gone, too
                await anyio.sleep(0.01)
            passed.append(name)
            inside[0] -= nbytes

    async def all_of_them() -> None:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for number, size in enumerate((90, 60, 40, 300, 10)):
                    group.start_soon(one, str(number), size)
                    await anyio.lowlevel.checkpoint()
                async with anyio.create_task_group() as cancelled:
                    cancelled.start_soon(one, "cancelled", 500)
                    await anyio.lowlevel.checkpoint()
                    cancelled.cancel_scope.cancel()

    anyio.run(all_of_them)
    assert passed == ["0", "1", "2", "3", "4"]
    assert not budget._gate._passing
