"""What a cancelled run held of its caches is free at once, and not only when Python's collector finds cycles.

Under asyncio, where servers run; abandoned threads have a test of their own under every event loop.
"""

import gc
from collections.abc import Iterator

import anyio
import pytest
from server_graphs import tiny_duo

from cachegraph.graph.graph import Graph

pytestmark = pytest.mark.anyio


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_run_that_is_left_at_any_point_frees_its_caches() -> None:
    graph = tiny_duo().with_settings(max_new_tokens=60, ignore_eos=True)
    async with graph:
        wiring = await graph.awire()
        engine = wiring.nodes[0].agent.peer().engine
        assert engine is not None
        for number in range(12):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(_leave, graph, number)
            with anyio.move_on_after(120):
                while engine.load().running or engine.kv_use().used != engine.kv_use().prefixes:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            use = engine.kv_use()
            assert use.used == use.prefixes, f"left after {number} events"


async def _leave(graph: Graph, events: int) -> None:
    async with graph.stream(story="the sky is blue " * 12) as stream:
        async for _ in stream:
            events -= 1
            if events < 0:
                return
