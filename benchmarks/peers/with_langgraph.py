"""The same graphs in LangGraph, by its public API: nodes that return nothing, on a state that stays as it is."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypedDict

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from rivals import Edges, Execute

__all__ = ["with_checkpoints", "without_checkpoints"]


class State(TypedDict):
    text: str


async def idle(state: State) -> dict[str, Any]:
    return {}


def _graph(nodes: int, edges: Edges) -> Any:
    builder = StateGraph(State)
    into: dict[int, list[str]] = {}
    for sender, receiver in edges:
        into.setdefault(receiver, []).append(f"n{sender}")
    for node in range(nodes):
        builder.add_node(f"n{node}", idle)
    for receiver, senders in into.items():
        builder.add_edge(senders if len(senders) > 1 else senders[0], f"n{receiver}")
    builder.add_edge(START, "n0")
    builder.add_edge(f"n{nodes - 1}", END)
    return builder


@asynccontextmanager
async def without_checkpoints(nodes: int, edges: Edges, room: Path) -> AsyncIterator[Execute]:
    graph = _graph(nodes, edges).compile()
    yield lambda: graph.ainvoke({"text": ""}, {"recursion_limit": nodes + 10})


@asynccontextmanager
async def with_checkpoints(nodes: int, edges: Edges, room: Path) -> AsyncIterator[Execute]:
    """A new thread of conversation for each run, in one SQLite file."""
    threads = count()
    async with AsyncSqliteSaver.from_conn_string(str(room / "langgraph.db")) as saver:
        graph = _graph(nodes, edges).compile(checkpointer=saver)

        def execute() -> Any:
            place = {"thread_id": str(next(threads))}
            return graph.ainvoke({"text": ""}, {"recursion_limit": nodes + 10, "configurable": place})

        yield execute
