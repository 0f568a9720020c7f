"""Which agents always run under conditions, and whether an output is always reached.

Uses names and edges only. A conditional edge may be skipped; an agent runs if at least one edge to it is not skipped.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

__all__ = ["PossibleEdge", "reach_surely", "surely_run"]


class PossibleEdge(NamedTuple):
    """A forward edge."""

    sender: str
    receiver: str
    conditional: bool


def surely_run(
    agents: Iterable[str], ways: Sequence[PossibleEdge], early: Collection[str]
) -> dict[str, frozenset[str]]:
    """Map each agent to those that have always finished when it has, itself included.

    Agents in `early` don't wait for all their edges.
    """
    before, order = _in_order(agents, ways)
    waited: dict[str, frozenset[str]] = {}  # agents that ran or were skipped before this one starts
    certain: dict[str, frozenset[str]] = {}
    for name in order:
        senders = [way.sender for way in before[name]]
        through = [waited[sender] | {sender} for sender in senders]
        combine = frozenset.intersection if name in early else frozenset.union
        waited[name] = combine(*through) if through else frozenset()
        known = {name} | (frozenset.intersection(*(certain[sender] for sender in senders)) if senders else frozenset())
        for other in (other for other in order if other in waited[name] - known):
            given = before[other]
            if not given or any(not way.conditional and way.sender in known for way in given):
                known |= {other}
        certain[name] = frozenset(known)
    return certain


def reach_surely(
    agents: Iterable[str], ways: Sequence[PossibleEdge], routes: Mapping[str, Collection[str]], outputs: Collection[str]
) -> bool:
    """Whether some output runs for every outcome of the conditions. `routes`: the receivers an agent may choose."""
    before, order = _in_order(agents, ways)
    after: dict[str, list[PossibleEdge]] = {}
    for way in ways:
        after.setdefault(way.sender, []).append(way)
    good = set(outputs)
    for name in reversed(order):
        sure = any(not way.conditional and way.receiver in good for way in after.get(name, ()))
        targets = routes.get(name)
        if sure or (targets and all(target in good for target in targets)):
            good.add(name)
    return any(not before[name] for name in good if name in before)


def _in_order(agents: Iterable[str], ways: Sequence[PossibleEdge]) -> tuple[dict[str, list[PossibleEdge]], list[str]]:
    """Return the edges into each agent, and the agents with senders first."""
    before: dict[str, list[PossibleEdge]] = {name: [] for name in agents}
    after: dict[str, list[str]] = {}
    for way in ways:
        before[way.receiver].append(way)
        after.setdefault(way.sender, []).append(way.receiver)
    missing = {name: len(given) for name, given in before.items()}
    order = [name for name, count in missing.items() if not count]
    for name in order:  # grows during iteration
        for receiver in after.get(name, ()):
            missing[receiver] -= 1
            if not missing[receiver]:
                order.append(receiver)
    return before, order
