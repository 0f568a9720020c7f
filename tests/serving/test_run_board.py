"""Runs of a server that begin as it stops, and copies of a recipe that several threads want."""

import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest
from server_graphs import scripted_duo

from cachegraph import Graph
from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.graph.store import Store
from cachegraph.serving.config import ServerConfig
from cachegraph.serving.generation import Call
from cachegraph.serving.run_queue import RunQueue
from cachegraph.serving.runs.board import RunBoard
from cachegraph.serving.served_graphs import ServedGraph, ServedGraphs, Speaker


@pytest.mark.anyio
async def test_a_run_that_enters_the_store_while_the_server_stops_is_parked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    graph = scripted_duo()
    board = RunBoard(ServedGraphs([graph]), RunQueue(2, 2), ServerConfig())
    board.on_end, begin = lambda *_: None, Store.begin

    def begin_as_the_server_stops(store: Store, *parts: Any) -> Any:
        anyio.from_thread.run_sync(board.park)
        return begin(store, *parts)

    monkeypatch.setattr(Store, "begin", begin_as_the_server_stops)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as board.group:
            call = Call(graph, Speaker("answerer", True, ScriptedAgent("answerer")), {"question": "why?"})
            live = await board.begin(call, None)
            await board.drained()
    with Store() as store:
        assert store.get(live.id).status == "interrupted"


def test_threads_that_want_one_copy_of_a_recipe_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    served, copies, threads = ServedGraph(scripted_duo()), list[Graph](), list[threading.Thread]()
    copy = Graph.with_channels

    def copy_beside_another_thread(graph: Graph, channel: Any) -> Graph:
        if not threads:
            threads.append(threading.Thread(target=lambda: copies.append(served._copy("both", {}))))
            threads[0].start()
            threads[0].join(0.3)  # it waits for this one; otherwise it makes a copy of its own
        return copy(graph, channel)

    monkeypatch.setattr(Graph, "with_channels", copy_beside_another_thread)
    copies.append(served._copy("both", {}))
    threads[0].join(60)
    assert copies[0] is copies[1]
