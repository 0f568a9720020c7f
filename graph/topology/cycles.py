"""Cycles, generations, and agents from which no path leads to an output.

networkx finds the cycles of a wrong recipe. Recipes without cycles, which are almost all, don't wait for its import.
"""

from collections.abc import Collection, Iterable
from typing import Any

__all__ = ["find_cycles", "generations", "receivers_of", "unread"]


def find_cycles(agents: Collection[str], pairs: Collection[tuple[str, str]]) -> list[list[str]]:
    """Return one cycle per strongly connected component, with its first agent repeated at the end."""
    if sum(map(len, generations(agents, pairs))) == len(receivers_of(agents, pairs)):
        return []
    import networkx as nx

    graph: nx.DiGraph[Any] = nx.DiGraph()
    graph.add_nodes_from(agents)
    graph.add_edges_from(pairs)
    found = nx.strongly_connected_components(graph)
    components = [names for names in found if len(names) > 1 or any(graph.has_edge(name, name) for name in names)]
    order = {name: number for number, name in enumerate(graph)}
    cycles = []
    for component in sorted(components, key=lambda component: min(order[name] for name in component)):
        start = min(component, key=order.__getitem__)
        edges = nx.find_cycle(graph.subgraph(component), start)
        cycles.append([edge[0] for edge in edges] + [edges[0][0]])
    return cycles


def generations(agents: Iterable[str], pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, ...], ...]:
    """Group agents by the longest path to them. Agents of cycles, and those behind them, are left out."""
    after = receivers_of(agents, pairs)
    waits = dict.fromkeys(after, 0)
    for receivers in after.values():
        for receiver in receivers:
            waits[receiver] += 1
    found = []
    ready = [name for name, count in waits.items() if not count]
    while ready:
        found.append(tuple(ready))
        finished, ready = ready, []
        for name in finished:
            for receiver in after[name]:
                waits[receiver] -= 1
                if not waits[receiver]:
                    ready.append(receiver)
    return tuple(found)


def unread(agents: Iterable[str], pairs: Iterable[tuple[str, str]], outputs: Iterable[str]) -> list[str]:
    """Return the agents from which no path leads to an output."""
    names = list(agents)
    before = receivers_of(names, [(receiver, sender) for sender, receiver in pairs])
    todo = list(outputs)
    read = set(todo)
    while todo:
        new = before[todo.pop()].keys() - read
        read |= new
        todo.extend(new)
    return [name for name in names if name not in read]


def receivers_of(agents: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, None]]:
    """Map each agent to its receivers, each once, in the order of the edges."""
    after: dict[str, dict[str, None]] = {name: {} for name in agents}
    for sender, receiver in pairs:
        after.setdefault(sender, {})[receiver] = None
        after.setdefault(receiver, {})
    return after
