"""Open agents and decided edges, ready for runs.

Built once per graph, after its models load, and shared by all its runs, which never modify it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cachegraph.agents.base import Agent, EdgeRouter
from cachegraph.agents.prompt.expression import Expression, compile_expression
from cachegraph.agents.sessions.spec import Memory
from cachegraph.channels.payload import Route, most_layers
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
    """An edge out of a node: the receiver, its inbox slot, the route, and the condition."""

    receiver: int
    place: int
    route: Route
    plain: bool = True  # unconditional, immediate and forward: no field below is set
    when: Expression | None = None
    chosen: bool = False  # the sender's `route` selects among these
    held_by: int | None = None  # the loop that it leaves, which holds it until the end
    leads_back: int | None = None  # the loop whose next round it starts
    until: Expression | None = None
    keeps_all: bool = False  # joins the payloads of all rounds


class Case(NamedTuple):
    """A case of an agent's `route`; the last has no condition."""

    when: Expression | None
    receiver: int


@dataclass(frozen=True, slots=True)
class ForEach:
    """A fan-out: one turn per item of a list."""

    items: Expression
    name: str
    most: int | None


@dataclass(frozen=True, slots=True)
class Node:
    """One agent with everything that a run needs to know about it."""

    index: int
    name: str
    agent: Agent
    model: str
    timeout: float | None
    entries: tuple[Route, ...]  # in recipe order
    exits: tuple[Exit, ...]
    needs_text: bool
    needs_cache: bool
    cache_layers: int | None = None  # number of leading layers of the cache that its edges read; None: all
    waits: int = 0  # deliveries before its first turn
    join: int = 0  # deliveries that suffice; 0: all
    loop: int | None = None  # the innermost loop
    cases: tuple[Case, ...] = ()
    for_each: ForEach | None = None
    is_graph: bool = False  # its agent runs an included recipe
    depth: int = 0  # priority in the models' engines
    memory: Memory = False


@dataclass(frozen=True, slots=True)
class LoopWiring:
    """A loop as node indices. `inside` are all its nodes, `members` those in no inner loop."""

    inside: frozenset[int]
    members: frozenset[int]
    loops: frozenset[int]  # inner loops, direct children only
    parent: int | None


@dataclass(frozen=True, slots=True)
class Wiring:
    """The nodes of a graph in recipe order, its start nodes, and its loops."""

    nodes: tuple[Node, ...]
    first: tuple[Node, ...]
    outputs: tuple[int, ...]
    loops: tuple[LoopWiring, ...] = ()
    joins_early: bool = False  # some agent may start before all its deliveries arrive
    warnings: tuple[RunWarning, ...] = ()  # sources lost over the decided edges


def wire(
    spec: GraphSpec, order: Plan, agents: Mapping[str, Agent], folder: Path, decide: Decide | None = None
) -> Wiring:
    """Decide every edge of a checked recipe with open agents. Raises ChannelError if an edge must not fall back."""
    return _Wirer(spec, order, agents, folder, decide).wiring()


class _Wirer:
    def __init__(self, spec: GraphSpec, order: Plan, agents: Mapping[str, Agent], folder: Path, decide: Decide | None):
        self.spec, self.order, self.agents, self.folder, self.decide = spec, order, agents, folder, decide
        self.index = {name: i for i, name in enumerate(spec.agents)}
        self.peers: dict[str, Peer] = {name: agents[name].peer() for name in self.index}
        self.graphs = spec.graphs
        self.depth = [order.steps[name].depth for name in self.index]  # the agent furthest from the output starts first
        self.entries: list[list[Route]] = [[] for _ in self.index]
        self.exits: list[list[Exit]] = [[] for _ in self.index]
        self.read_as_text = {
            *spec.outputs.values(),
            *steering_names(spec),
            *(pair[0] for pair in whose_fields_are_read(spec)),
        }

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
        when, until = (
            None if source is None else compile_expression(source, None) for source in (edge.when, edge.until)
        )
        plain = when is None and held is None and loop is None and not chosen and edge.rounds == "newest"
        return Exit(receiver, place, route, plain, when, chosen, held, loop, until, edge.rounds == "all")

    def _node(self, name: str) -> Node:
        i, entry = self.index[name], self.spec.agents[name]
        cases = (
            Case(None if c.when is None else compile_expression(c.when, None), self.index[c.to]) for c in entry.route
        )
        taking = [exit.route for exit in self.exits[i] if exit.route.needs_cache]
        needs_cache = bool(taking)
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
            # In a loop, don't keep earlier rounds' turns alive for replies that nobody has requested.
            needs_text=name in self.read_as_text
            or any(exit.route.needs_text for exit in self.exits[i])
            or (loop is not None and (not needs_cache or _is_fused(self.entries[i]))),
            needs_cache=needs_cache,
            cache_layers=most_layers(route.cache_layers for route in taking),
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
            inner = [other for other, other_loop in enumerate(loops) if other_loop.parent == number]
            inside = frozenset(self.index[name] for name in loop.body)
            members = inside - {self.index[name] for other in inner for name in loops[other].body}
            wired.append(LoopWiring(inside, members, frozenset(inner), loop.parent))
        return tuple(wired)

    def _route(self, edge: EdgeSpec) -> Route:
        receiver = self.agents[edge.receiver]
        if isinstance(receiver, EdgeRouter) and not isinstance(edge, TextEdge):
            return receiver.route(edge, self.peers[edge.sender], self.folder, self.spec.fusers)
        ends = self.peers[edge.sender], self.peers[edge.receiver]
        return _route(edge, *ends, self.folder, self.decide, self.spec.fusers)


def _is_fused(entries: list[Route]) -> bool:
    return any(route.used != "text" and not route.needs_cache for route in entries)


def _route(
    edge: EdgeSpec, sender: Peer, receiver: Peer, folder: Path, decide: Decide | None, fusers: Sequence[str]
) -> Route:
    if isinstance(edge, TextEdge):
        return Route(edge, "text")  # nothing to decide, so don't import the cache code
    if decide is not None:
        return decide(edge, sender, receiver, folder)
    if sender.sharer is None or receiver.engine is None:  # no cache can travel, and loading torch would take seconds
        from cachegraph.channels.choose_channel import decide_edge, fall_back

        return fall_back(edge, decide_edge(edge, sender, receiver, folder, fusers).reason or "no cache can travel")
    from cachegraph.channels import load_route

    return load_route.route(edge, sender, receiver, folder, fusers)
