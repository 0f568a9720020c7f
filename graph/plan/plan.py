"""The order in which agents run. Independent of models and payloads."""

from collections.abc import Mapping
from dataclasses import dataclass

from cachegraph.channels.spec import EdgeSpec
from cachegraph.errors import RecipeError

from ..recipe.spec import GraphSpec
from ..topology.cycles import find_cycles, generations, receivers_of
from ..topology.loops import Loop, find_loops

__all__ = ["Plan", "Step", "plan"]


@dataclass(frozen=True)
class Step:
    """One agent's place in the plan."""

    name: str
    incoming: tuple[EdgeSpec, ...]  # in the recipe's order
    outgoing: tuple[EdgeSpec, ...]
    depth: int  # edges on the longest path from here to the output; deeper agents start first


@dataclass(frozen=True)
class Plan:
    """A runnable graph: no agent waits for itself, and a path leads from every agent to the output."""

    steps: Mapping[str, Step]  # in a valid sequential order
    generations: tuple[tuple[str, ...], ...]  # agents that may run at the same time, in a loop's first round
    output: str
    loops: tuple[Loop, ...] = ()  # the outer before the inner

    @property
    def critical_path(self) -> int:
        """Number of agents on the longest chain."""
        return len(self.generations)

    def loop_back(self, edge: EdgeSpec) -> int | None:
        """The loop whose next round an edge starts."""
        pair = (edge.sender, edge.receiver)
        return next((number for number, loop in enumerate(self.loops) if pair in loop.back), None)

    def left_by(self, edge: EdgeSpec) -> int | None:
        """The outermost loop that an edge leaves."""
        ways = (n for n, loop in enumerate(self.loops) if edge.sender in loop.body and edge.receiver not in loop.body)
        return next(ways, None)

    def innermost(self, name: str) -> int | None:
        """The innermost loop that contains an agent."""
        return next((n for n, loop in reversed(list(enumerate(self.loops))) if name in loop.body), None)

    def ancestors(self, name: str) -> frozenset[str]:
        """All agents for which this one waits, directly or indirectly."""
        found: set[str] = set()
        todo = [name]
        while todo:
            senders = {edge.sender for edge in self.steps[todo.pop()].incoming} - found
            found |= senders
            todo.extend(senders)
        return frozenset(found)


def plan(spec: GraphSpec) -> Plan:
    """Order a recipe's agents. Raises RecipeError if an edge has an unknown end or agents wait for each other."""
    strangers = [edge for edge in spec.edges if edge.sender not in spec.agents or edge.receiver not in spec.agents]
    lost = [name for name in spec.outputs.values() if name not in spec.agents]
    if strangers or lost:
        what = f"edge {strangers[0].sender!r} -> {strangers[0].receiver!r}" if strangers else f"output {lost[0]!r}"
        raise RecipeError(f"{what} names an agent that the recipe doesn't have; add it to 'agents'")
    pairs = [(edge.sender, edge.receiver) for edge in spec.edges if edge.max_rounds is None]
    if cycles := find_cycles(spec.agents, pairs):
        cycle = " -> ".join(cycles[0])
        raise RecipeError(
            f"agents wait for each other in a cycle: {cycle}; give one of its edges 'max_rounds', or remove it"
        )
    back = [(edge.sender, edge.receiver) for edge in spec.edges if edge.max_rounds is not None]
    loops, closing_none = find_loops(pairs, back)
    if closing_none:
        sender, receiver = closing_none[0]
        raise RecipeError(f"edge {sender!r} -> {receiver!r} has 'max_rounds' and closes no cycle; leave it out")
    after, in_turn = receivers_of(spec.agents, pairs), generations(spec.agents, pairs)
    order = [name for generation in in_turn for name in generation]
    depth = dict.fromkeys(order, 0)
    for name in reversed(order):
        for receiver in after[name]:
            depth[name] = max(depth[name], depth[receiver] + 1)
    incoming: dict[str, list[EdgeSpec]] = {name: [] for name in order}
    outgoing: dict[str, list[EdgeSpec]] = {name: [] for name in order}
    for edge in spec.edges:
        incoming[edge.receiver].append(edge)
        outgoing[edge.sender].append(edge)
    steps = {name: Step(name, tuple(incoming[name]), tuple(outgoing[name]), depth[name]) for name in order}
    return Plan(steps, in_turn, spec.output, tuple(loops))
