"""Open agents and decided edges, as a run follows them.

Made once a graph, after its models are loaded, and shared by all its runs: nothing here changes while they run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cachegraph.agents.base import Agent
from cachegraph.agents.prompt.expression import Expression, compile_expression
from cachegraph.agents.sessions.spec import Memory
from cachegraph.channels.payload import Route
from cachegraph.channels.peer import Peer
from cachegraph.channels.spec import EdgeSpec, TextEdge
from cachegraph.errors import ChannelError

from ..recipe.single_braces import find_single_braces
from ..recipe.spec import GraphSpec
from ..run_warning import RunWarning
from .agent_reads import steering_names, whose_fields_are_read
from .dataflow import Dataflow
from .plan import Plan

__all__ = ["Case", "Decide", "Exit", "ForEach", "LoopWiring", "Node", "Wiring", "wire"]

Decide = Callable[[EdgeSpec, Peer, Peer, Path], Route]


class Exit(NamedTuple):
    """Where a reply goes: to which node, into which place of its inbox, by which route, and when."""

    receiver: int
    place: int
    route: Route
    plain: bool = True  # always, at once, and forward: nothing below is set
    when: Expression | None = None
    chosen: bool = False  # the sender's `route` chooses between this and others
    held_by: int | None = None  # the loop that it leaves, at whose end it goes
    leads_back: int | None = None  # the loop in which it goes to the next round
    until: Expression | None = None
    keeps_all: bool = False  # every round's message, as one


class Case(NamedTuple):
    """One case of an agent's `route`; the last has no condition."""

    when: Expression | None
    receiver: int


@dataclass(frozen=True, slots=True)
class ForEach:
    """An agent's turn for every item of a list."""

    items: Expression
    name: str
    most: int | None


@dataclass(frozen=True, slots=True)
class Node:
    """One agent, and all that a run needs to know about it."""

    index: int
    name: str
    agent: Agent
    model: str
    timeout: float | None
    entries: tuple[Route, ...]  # in recipe order
    exits: tuple[Exit, ...]
    needs_text: bool
    needs_cache: bool
    waits: int = 0  # messages before its first turn
    join: int = 0  # messages that are enough; 0: all
    loop: int | None = None  # the innermost
    cases: tuple[Case, ...] = ()
    for_each: ForEach | None = None
    is_graph: bool = False  # its agent is a run of its own
    depth: int = 0  # how urgent it is for the models' engines
    memory: Memory = False


@dataclass(frozen=True, slots=True)
class LoopWiring:
    """A loop by its nodes. `inside` are all of them, `members` those in no inner loop."""

    inside: frozenset[int]
    members: frozenset[int]
    loops: frozenset[int]  # directly inside
    parent: int | None


@dataclass(frozen=True, slots=True)
class Wiring:
    """The nodes of a graph in recipe order, which of them wait for nobody, and its loops."""

    nodes: tuple[Node, ...]
    first: tuple[Node, ...]
    outputs: tuple[int, ...]
    loops: tuple[LoopWiring, ...] = ()
    joins_early: bool = False  # some agent starts before all it could hear of has arrived
    warnings: tuple[RunWarning, ...] = ()  # what reaches nobody over the decided edges


def wire(
    spec: GraphSpec, order: Plan, agents: Mapping[str, Agent], folder: Path, decide: Decide | None = None
) -> Wiring:
    """Decide every edge of a checked recipe whose agents are open. Raises ChannelError where one may not fall back."""
    return _Wirer(spec, order, agents, folder, decide).wiring()


class _Wirer:
    def __init__(self, spec: GraphSpec, order: Plan, agents: Mapping[str, Agent], folder: Path, decide: Decide | None):
        self.spec, self.order, self.agents, self.folder, self.decide = spec, order, agents, folder, decide
        self.index = {name: i for i, name in enumerate(spec.agents)}
        self.peers: dict[str, Peer] = {name: agents[name].peer() for name in self.index}
        self.graphs = spec.graphs
        self.depth = [order.steps[name].depth for name in self.index]  # who is furthest from the output starts first
        self.entries: list[list[Route]] = [[] for _ in self.index]
        self.exits: list[list[Exit]] = [[] for _ in self.index]
        self.told = {*spec.outputs.values(), *steering_names(spec), *(pair[0] for pair in whose_fields_are_read(spec))}

    def wiring(self) -> Wiring:
        for edge in self.spec.edges:
            exit = self._exit(edge)
            self.exits[self.index[edge.sender]].append(exit)
            self.entries[exit.receiver].append(exit.route)
        nodes = tuple(self._node(name) for name in self.index)
        first = sorted((node for node in nodes if not node.waits), key=lambda node: -self.depth[node.index])
        outputs = tuple(self.index[name] for name in self.spec.outputs.values())
        joins_early = any(node.join for node in nodes)
        return Wiring(nodes, tuple(first), outputs, self._loops(), joins_early, self._warnings())

    def _warnings(self) -> tuple[RunWarning, ...]:
        routes = (route for entries in self.entries for route in entries)
        flow = Dataflow(self.spec, {(route.edge.sender, route.edge.receiver): route for route in routes})
        if (cut := flow.cut_output()) is not None:
            raise ChannelError(cut)
        return (*flow.warnings(), *find_single_braces(self.spec))

    def _exit(self, edge: EdgeSpec) -> Exit:
        route = self._route(edge)
        receiver = self.index[edge.receiver]
        place = len(self.entries[receiver])
        loop = self.order.loop_back(edge) if edge.max_rounds is not None else None
        held = self.order.left_by(edge)
        chosen = any(case.to == edge.receiver for case in self.spec.agents[edge.sender].route)
        when, until = (None if each is None else compile_expression(each, None) for each in (edge.when, edge.until))
        plain = when is None and held is None and loop is None and not chosen and edge.rounds == "newest"
        return Exit(receiver, place, route, plain, when, chosen, held, loop, until, edge.rounds == "all")

    def _node(self, name: str) -> Node:
        i, entry = self.index[name], self.spec.agents[name]
        cases = (
            Case(None if c.when is None else compile_expression(c.when, None), self.index[c.to]) for c in entry.route
        )
        needs_cache = any(exit.route.needs_cache for exit in self.exits[i])
        loop = self.order.innermost(name)
        incoming = self.order.steps[name].incoming
        return Node(
            index=i,
            name=name,
            agent=self.agents[name],
            model=self.peers[name].name,
            timeout=entry.timeout,
            memory=entry.session_memory,
            entries=tuple(self.entries[i]),
            exits=tuple(sorted(self.exits[i], key=lambda exit: -self.depth[exit.receiver])),
            # Who goes round keeps no turn of the round before it alive just to write what nobody has asked for.
            needs_text=name in self.told
            or any(exit.route.needs_text for exit in self.exits[i])
            or (loop is not None and (not needs_cache or _is_fused(self.entries[i]))),
            needs_cache=needs_cache,
            waits=sum(edge.max_rounds is None for edge in incoming),
            join=0 if entry.join == "all" else 1 if entry.join == "any" else entry.join,
            loop=loop,
            cases=tuple(cases),
            for_each=None
            if entry.for_each is None
            else ForEach(compile_expression(entry.for_each, None), entry.item, entry.max_concurrent),
            is_graph=name in self.graphs,
            depth=self.depth[i],
        )

    def _loops(self) -> tuple[LoopWiring, ...]:
        loops = self.order.loops
        wired = []
        for number, loop in enumerate(loops):
            inner = [other for other, each in enumerate(loops) if each.parent == number]
            inside = frozenset(self.index[name] for name in loop.body)
            members = inside - {self.index[name] for other in inner for name in loops[other].body}
            wired.append(LoopWiring(inside, members, frozenset(inner), loop.parent))
        return tuple(wired)

    def _route(self, edge: EdgeSpec) -> Route:
        ends = self.peers[edge.sender], self.peers[edge.receiver]
        return _route(edge, *ends, self.folder, self.decide, self.spec.fusers)


def _is_fused(entries: list[Route]) -> bool:
    return any(route.used != "text" and not route.needs_cache for route in entries)


def _route(
    edge: EdgeSpec, sender: Peer, receiver: Peer, folder: Path, decide: Decide | None, fusers: Sequence[str]
) -> Route:
    if isinstance(edge, TextEdge):
        return Route(edge, "text")  # nothing to decide, and no need to load what knows caches
    if decide is None:
        from cachegraph.channels import routing

        return routing.route(edge, sender, receiver, folder, fusers)
    return decide(edge, sender, receiver, folder)
