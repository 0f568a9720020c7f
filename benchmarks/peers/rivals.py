"""Who runs the graphs: each contender is given a graph's edges and a folder, and yields what executes it once."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from pathlib import Path

from runtime_overhead import Edges, built

__all__ = ["Contender", "Edges", "Execute", "contenders"]

Execute = Callable[[], Awaitable[object]]
Contender = Callable[[int, Edges, Path], AbstractAsyncContextManager[Execute]]

PEERS = {
    "pydantic-graph": ("with_pydantic_graph", "plain"),
    "langgraph": ("with_langgraph", "without_checkpoints"),
    "langgraph, SQLite": ("with_langgraph", "with_checkpoints"),
}


def contenders() -> tuple[dict[str, Contender], dict[str, str]]:
    """Ours, and the peers that are installed; and by name why others are left out."""
    found: dict[str, Contender] = {"cachegraph": _ours, "cachegraph, SQLite": _ours_stored}
    missing = {}
    for name, (module, function) in PEERS.items():
        try:
            found[name] = getattr(import_module(module), function)
        except ImportError as error:
            missing[name] = str(error)
    return found, missing


@asynccontextmanager
async def _ours(nodes: int, edges: Edges, room: Path) -> AsyncIterator[Execute]:
    async with await built(nodes, edges).aopen() as graph:
        yield graph.arun


@asynccontextmanager
async def _ours_stored(nodes: int, edges: Edges, room: Path) -> AsyncIterator[Execute]:
    from cachegraph.graph.store import Store

    store = Store(room / "cachegraph.db")
    async with await built(nodes, edges).aopen() as graph:
        yield lambda: graph.arun(store=store)
