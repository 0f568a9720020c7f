"""Which agents surely run under conditions, and whether an output is surely reached.

Reasons over names and edges alone. An edge that is conditional may be skipped; an agent runs if one edge to it was not.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

__all__ = ["PossibleEdge", "reach_surely", "surely_run"]


class PossibleEdge(NamedTuple):
    """An edge, without those that lead back."""

    sender: str
    receiver: str
    conditional: bool


def surely_run(
    agents: Iterable[str], ways: Sequence[PossibleEdge], early: Collection[str]
) -> dict[str, frozenset[str]]:
    """By agent who has finished whenever it has, itself included. Agents in `early` don't wait for all their edges."""
    before, order = _in_order(agents, ways)
    waited: dict[str, frozenset[str]] = {}  # who is through, run or skipped, when this one starts
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
    """Whether one of the outputs runs however conditions turn out. `routes`: the receivers an agent chooses from."""
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
    """The edges into each agent, and the agents so that senders come first."""
    before: dict[str, list[PossibleEdge]] = {name: [] for name in agents}
    after: dict[str, list[str]] = {}
    for way in ways:
        before[way.receiver].append(way)
        after.setdefault(way.sender, []).append(way.receiver)
    missing = {name: len(given) for name, given in before.items()}
    order = [name for name, count in missing.items() if not count]
    for name in order:  # grows while it is read
        for receiver in after.get(name, ()):
            missing[receiver] -= 1
            if not missing[receiver]:
                order.append(receiver)
    return before, order
