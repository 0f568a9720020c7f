"""Loops that bounded edges close, and how they nest.

An edge with `max_rounds` leads back: without such edges the graph has no cycle. Its loop holds every agent on a path
from its receiver to its sender. Loops that share agents merge, unless one contains the other: then the inner loop
runs all its rounds in every round of the outer one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Loop", "find_loops", "reachable"]

Pair = tuple[str, str]


@dataclass(frozen=True)
class Loop:
    """Agents that run round by round. `parent` is the list index of the enclosing loop."""

    body: frozenset[str]
    back: tuple[Pair, ...]  # back edges as (sender, receiver)
    parent: int | None = None


def find_loops(forward: Iterable[Pair], back: Iterable[Pair]) -> tuple[list[Loop], list[Pair]]:
    """Return all loops, outer before inner, and the edges of `back` that close none."""
    after, before = _neighbours(forward)
    unmerged: list[tuple[frozenset[str], list[Pair]]] = []
    closing_none = []
    for sender, receiver in back:
        body = (reachable(after, receiver) & reachable(before, sender)) if sender != receiver else frozenset({sender})
        if body:
            unmerged.append((body, [(sender, receiver)]))
        else:
            closing_none.append((sender, receiver))
    merged = sorted(_merged(unmerged), key=lambda loop: -len(loop[0]))
    loops = []
    for number, (body, pairs) in enumerate(merged):
        around = [other for other in range(number) if body < merged[other][0]]
        loops.append(Loop(body, tuple(pairs), around[-1] if around else None))
    return loops, closing_none


def reachable(after: Mapping[str, Sequence[str]], start: str) -> frozenset[str]:
    """Return the start and all nodes reachable from it."""
    found, todo = {start}, [start]
    while todo:
        new = set(after.get(todo.pop(), ())) - found
        found |= new
        todo.extend(new)
    return frozenset(found)


def _merged(unmerged: list[tuple[frozenset[str], list[Pair]]]) -> list[tuple[frozenset[str], list[Pair]]]:
    loops: list[tuple[frozenset[str], list[Pair]]] = []
    for body, pairs in unmerged:
        while True:
            other = next((loop for loop in loops if _tangled(loop[0], body)), None)
            if other is None:
                break
            loops.remove(other)
            body, pairs = other[0] | body, other[1] + pairs
        loops.append((body, pairs))
    return loops


def _tangled(one: frozenset[str], other: frozenset[str]) -> bool:
    return bool(one & other) and not one < other and not other < one


def _neighbours(pairs: Iterable[Pair]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    after: dict[str, list[str]] = {}
    before: dict[str, list[str]] = {}
    for sender, receiver in pairs:
        after.setdefault(sender, []).append(receiver)
        before.setdefault(receiver, []).append(sender)
    return after, before
