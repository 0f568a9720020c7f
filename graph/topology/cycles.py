"""Cycles, and agents from which no path leads to an output."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["digraph", "find_cycles", "unread"]


def find_cycles(agents: Iterable[str], pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return one cycle per strongly connected component, with its first agent repeated at the end."""
    import networkx as nx

    graph = digraph(agents, pairs)
    components = [component for component in nx.strongly_connected_components(graph) if len(component) > 1]
    order = {name: number for number, name in enumerate(graph)}
    cycles = []
    for component in sorted(components, key=lambda component: min(order[name] for name in component)):
        start = min(component, key=order.__getitem__)
        edges = nx.find_cycle(graph.subgraph(component), start)
        cycles.append([edge[0] for edge in edges] + [edges[0][0]])
    return cycles


def unread(agents: Iterable[str], pairs: Iterable[tuple[str, str]], outputs: Iterable[str]) -> list[str]:
    """Return the agents from which no path leads to an output."""
    import networkx as nx

    graph = digraph(agents, pairs)
    read = {name for output in outputs for name in (*nx.ancestors(graph, output), output)}
    return [name for name in graph if name not in read]


def digraph(agents: Iterable[str], pairs: Iterable[tuple[str, str]]) -> "nx.DiGraph[Any]":
    """Build the networkx graph of these agents and (sender, receiver) edges."""
    import networkx as nx

    graph: nx.DiGraph[Any] = nx.DiGraph()
    graph.add_nodes_from(agents)
    graph.add_edges_from(pairs)
    return graph
