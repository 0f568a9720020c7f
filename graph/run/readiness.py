"""Which agents may start, round by round. Runs no agents.

A counter per agent holds the number of open edges. A delivery closes an edge; a condition, a route or a skipped
sender skips it. An agent is skipped if every edge to it was skipped. A loop's round ends when all its agents have
run or were skipped; then either back edges start the next round, or the deliveries held for agents outside the loop
are released.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from cachegraph.agents.base import Delivery

from ..plan.wiring import Exit, Node, Wiring

__all__ = ["Readiness"]

_Place = tuple[int, int]  # a receiver, and a slot of its inbox


class _Round(NamedTuple):
    """A further round of a loop: its nodes, each with the inbox slots it waits for, and its inner loops."""

    nodes: tuple[tuple[int, frozenset[int]], ...]
    loops: tuple[int, ...]
    units: int  # nodes outside inner loops, plus inner loops


class Readiness:
    """Scheduling state of one run. `ready` holds agents that may start now, for the caller to pop.

    Calls `skipped` for agents that won't start in this round, and `cancelled` for those that won't start at all.
    """

    def __init__(
        self, wiring: Wiring, skipped: Callable[[Node], None], cancelled: Callable[[Node, Node], None]
    ) -> None:
        self.ready: list[Node] = list(wiring.first)
        self._wiring = wiring
        self._skipped = skipped
        self._cancelled = cancelled
        self._inboxes: dict[int, list[Delivery | None]] = {}  # deliveries, until their receivers take them
        self._open = [node.waits for node in wiring.nodes]
        self._came = [0] * len(wiring.nodes)
        self._begun = {node.index for node in wiring.first}
        self._through: set[int] = set()
        self._doomed: set[int] = set()
        self._rounds = [1] * len(wiring.loops)
        self._units = [len(loop.members) + len(loop.loops) for loop in wiring.loops]
        self._back: list[dict[_Place, tuple[Exit, Delivery]]] = [{} for _ in wiring.loops]
        self._held: list[dict[_Place, tuple[Exit, Delivery | None]]] = [{} for _ in wiring.loops]
        self._awaited: dict[int, frozenset[int]] = {}  # inbox slots that a later round fills
        self._broken: dict[int, Node] = {}  # loops in which an agent failed
        self._plans: dict[tuple[int, frozenset[int]], _Round] = {}
        self._to_skip: list[int] = []
        self._ended: list[int] = []

    def take(self, node: Node) -> Sequence[Delivery]:
        """Return the deliveries of an agent that starts. In a loop they stay for later rounds until replaced."""
        if node.loop is None:
            return self._inboxes.pop(node.index, ())  # type: ignore[return-value]  # empty places are dropped below
        return list(self._inboxes.get(node.index, ()))  # type: ignore[arg-type]

    def goes_round(self, exit: Exit) -> bool:
        """Whether a back edge has rounds left."""
        assert exit.leads_back is not None
        edge = exit.route.edge
        return edge.max_rounds is not None and self._rounds[exit.leads_back] < edge.max_rounds

    def finished(self, node: Node, deliveries: Iterable[tuple[Exit, Delivery | None]]) -> None:
        """Close the edges out of an agent that took its turn; None skips an edge."""
        for exit, delivery in deliveries:
            if exit.plain:
                self._arrive(exit, delivery)
            else:
                self._send(exit, delivery)
        self._is_through(node.index)
        self._settle()

    def failed(self, node: Node) -> None:
        """Cancel all agents that depend on a failed agent."""
        self._doomed.add(node.index)
        self._doom(node, node)
        self._is_through(node.index)
        self._settle()

    def is_over(self, index: int) -> bool:
        """Whether an agent will take no further turn."""
        loop = self._wiring.nodes[index].loop
        if loop is None:
            return index in self._through
        while (parent := self._wiring.loops[loop].parent) is not None:
            loop = parent
        return self._units[loop] == 0

    def clear(self) -> None:
        """Drop all deliveries."""
        self._inboxes.clear()
        self._back.clear()
        self._held.clear()

    # edges

    def _send(self, exit: Exit, delivery: Delivery | None) -> None:
        if exit.leads_back is not None:
            if delivery is not None:
                self._back[exit.leads_back][exit.receiver, exit.place] = (exit, delivery)
        elif exit.held_by is not None:
            self._held[exit.held_by][exit.receiver, exit.place] = (exit, delivery)
        else:
            self._arrive(exit, delivery)

    def _arrive(self, exit: Exit, delivery: Delivery | None) -> None:
        receiver = exit.receiver
        node = self._wiring.nodes[receiver]
        if receiver in self._doomed or (receiver in self._begun and node.loop is None):
            return
        self._put(exit, delivery)
        if exit.place in self._awaited.get(receiver, (exit.place,)):
            self._open[receiver] -= 1
        if delivery is not None:
            self._came[receiver] += 1
        if receiver not in self._begun:
            self._may_begin(node)

    def _put(self, exit: Exit, delivery: Delivery | None) -> None:
        inbox = self._inboxes.get(exit.receiver)
        if inbox is None:
            inbox = self._inboxes[exit.receiver] = [None] * len(self._wiring.nodes[exit.receiver].entries)
        inbox[exit.place] = delivery

    def _may_begin(self, node: Node) -> None:
        index = node.index
        if self._open[index] and (not node.join or self._came[index] < node.join):
            return
        self._begun.add(index)
        if self._came[index] or not node.entries:
            self.ready.append(node)
        else:
            self._to_skip.append(index)

    # consequences

    def _settle(self) -> None:
        while self._to_skip or self._ended:
            while self._to_skip:
                self._skip(self._wiring.nodes[self._to_skip.pop()])
            while self._ended:
                self._end_round(self._ended.pop())

    def _skip(self, node: Node) -> None:
        self._skipped(node)
        for exit in node.exits:
            self._send(exit, None)
        self._is_through(node.index)

    def _is_through(self, index: int) -> None:
        self._through.add(index)
        loop = self._wiring.nodes[index].loop
        if loop is not None:
            self._unit_is_through(loop)

    def _unit_is_through(self, loop: int) -> None:
        self._units[loop] -= 1
        if not self._units[loop]:
            self._ended.append(loop)

    def _doom(self, node: Node, failed: Node) -> None:
        doomed = [node]
        while doomed:
            node = doomed.pop()
            self._break_loops(node, failed)
            for exit in node.exits:
                # Other agents of a failed loop may still run. Its held deliveries are dropped at its end.
                if exit.leads_back is None and exit.held_by is None and exit.receiver not in self._doomed:
                    doomed += self._cancel(exit.receiver, failed)

    def _cancel(self, index: int, failed: Node) -> list[Node]:
        node = self._wiring.nodes[index]
        if index in self._begun:
            return []  # an early join: the agent has enough deliveries
        self._doomed.add(index)
        self._inboxes.pop(index, None)
        self._begun.add(index)
        self._cancelled(node, failed)
        self._is_through(index)
        return [node]

    # rounds

    def _break_loops(self, node: Node, failed: Node) -> None:
        loop = node.loop
        while loop is not None:
            self._broken.setdefault(loop, failed)
            loop = self._wiring.loops[loop].parent

    def _end_round(self, loop: int) -> None:
        back, self._back[loop] = self._back[loop], {}
        if back and loop not in self._broken:
            self._begin_round(loop, list(back.values()))
            return
        held, self._held[loop] = self._held[loop], {}
        parent = self._wiring.loops[loop].parent
        if parent is None:
            for index in self._wiring.loops[loop].inside:
                self._inboxes.pop(index, None)
        for exit, delivery in held.values():
            if (failed := self._broken.get(loop)) is None:
                self._arrive(exit, delivery)
            elif exit.receiver not in self._doomed:
                for node in self._cancel(exit.receiver, failed):
                    self._doom(node, failed)
        if parent is not None:
            self._unit_is_through(parent)

    def _begin_round(self, loop: int, back: Sequence[tuple[Exit, Delivery]]) -> None:
        self._rounds[loop] += 1
        heads = frozenset(exit.receiver for exit, _ in back)
        plan = self._plans.get((loop, heads)) or self._plans.setdefault((loop, heads), self._plan(loop, heads))
        self._units[loop] = plan.units
        for inner in plan.loops:
            self._rounds[inner] = 1
            self._units[inner] = len(self._wiring.loops[inner].members) + len(self._wiring.loops[inner].loops)
        for exit, delivery in back:
            self._put(exit, delivery)
        for index, places in plan.nodes:
            inbox = self._inboxes.get(index, ())
            self._open[index], self._awaited[index] = len(places), places
            self._came[index] = sum(delivery is not None for place, delivery in enumerate(inbox) if place not in places)
            self._begun.discard(index)
            self._through.discard(index)
        for index, places in plan.nodes:
            if not places:
                self._may_begin(self._wiring.nodes[index])

    def _plan(self, loop: int, heads: frozenset[int]) -> _Round:
        """Collect all nodes reachable from the receivers of the back edges, with complete inner loops."""
        wiring = self._wiring
        inside = wiring.loops[loop].inside
        nodes: set[int] = set()
        todo = set(heads)
        while todo:
            index = todo.pop()
            nodes.add(index)
            follow = {exit.receiver for exit in wiring.nodes[index].exits if exit.leads_back is None} & inside
            for inner in self._within(loop):
                follow |= wiring.loops[inner].inside if index in wiring.loops[inner].inside else set()
            todo |= follow - nodes
        loops = [inner for inner in self._within(loop) if wiring.loops[inner].inside & nodes]
        waits: dict[int, set[int]] = {index: set() for index in nodes}
        for index in nodes:
            for exit in wiring.nodes[index].exits:
                if exit.leads_back is None and exit.receiver in nodes:
                    waits[exit.receiver].add(exit.place)
        direct = len(nodes & wiring.loops[loop].members) + sum(wiring.loops[inner].parent == loop for inner in loops)
        return _Round(tuple((index, frozenset(waits[index])) for index in sorted(nodes)), tuple(loops), direct)

    def _within(self, loop: int) -> list[int]:
        """Return all loops nested in a loop, at any depth."""
        nested: list[int] = []
        for number, wired in enumerate(self._wiring.loops):
            if wired.parent == loop or wired.parent in nested:
                nested.append(number)
        return nested
