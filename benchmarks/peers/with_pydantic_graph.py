"""The same graphs in pydantic-graph, by its public API: steps that return nothing, and a join that drops it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic_graph import GraphBuilder, StepContext, reduce_null
from rivals import Edges, Execute

__all__ = ["plain"]


async def idle(context: StepContext[None, None, Any]) -> None: ...


@asynccontextmanager
async def plain(nodes: int, edges: Edges, room: Path) -> AsyncIterator[Execute]:
    builder: Any = GraphBuilder()
    steps = [builder.step(idle, node_id=f"n{node}") for node in range(nodes)]
    out: dict[int, list[int]] = {}
    into: dict[int, int] = {}
    for sender, receiver in edges:
        out.setdefault(sender, []).append(receiver)
        into[receiver] = into.get(receiver, 0) + 1
    joins = {
        node: builder.join(reduce_null, initial=None, node_id=f"j{node}") for node, many in into.items() if many > 1
    }
    builder.add(builder.edge_from(builder.start_node).to(steps[0]))
    for sender, receivers in out.items():
        builder.add(builder.edge_from(steps[sender]).to(*(joins.get(node, steps[node]) for node in receivers)))
    for node, join in joins.items():
        builder.add(builder.edge_from(join).to(steps[node]))
    builder.add(builder.edge_from(steps[-1]).to(builder.end_node))
    yield builder.build().run
