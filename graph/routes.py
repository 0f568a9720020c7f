"""From a recipe's names to what a run follows: open agents, a route for every edge, and who waits for whom.

Made once a graph, after its models are loaded, and shared by all its runs: nothing here changes while they run.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import anyio

from cachegraph.agents.base import Agent
from cachegraph.agents.create import Create
from cachegraph.agents.spec import AgentSpec, PauseSpec, SubgraphSpec
from cachegraph.agents.template import compile_template
from cachegraph.channels.base import Peer
from cachegraph.channels.message import Route
from cachegraph.channels.spec import EdgeSpec, TextEdge
from cachegraph.errors import ConfigError

from .plan import Plan
from .spec import GraphSpec

__all__ = ["Cast", "Decide", "Exit", "Node", "Wiring", "create_agents", "wire"]

Decide = Callable[[EdgeSpec, Peer, Peer, Path], Route]


class Cast:
    """The agents of a graph, opened together. A graph shares them with its copies that differ in channels only."""

    def __init__(self, agents: Mapping[str, Agent]):
        self.agents = agents
        self.is_open = False
        self.epoch = 0  # grows when the agents are closed: what was wired before is then void

    async def open(self) -> None:
        """Open all agents at once. Safe to call from many runs; raises the first agent's error in recipe order."""
        if self.is_open:
            return
        errors: dict[str, Exception] = {}

        async def open_one(name: str) -> None:
            try:
                await self.agents[name].open()
            except Exception as error:
                errors[name] = error

        async with anyio.create_task_group() as group:
            for name in self.agents:
                group.start_soon(open_one, name)
        for name in self.agents:
            if name in errors:
                raise errors[name]
        self.is_open = True

    async def close(self) -> None:
        """Close all agents, even if one of them fails to; raises the first error then."""
        self.is_open = False
        self.epoch += 1
        first: Exception | None = None
        for agent in self.agents.values():
            try:
                await agent.close()
            except Exception as error:
                first = first or error
        if first is not None:
            raise first


def create_agents(spec: GraphSpec, folder: Path, create: Create) -> dict[str, Agent]:
    """The agents of a checked recipe, none of them open."""
    upstream: dict[str, list[str]] = {name: [] for name in spec.agents}
    for edge in spec.edges:
        upstream[edge.receiver].append(edge.sender)
    inputs = tuple(spec.inputs)
    agents: dict[str, Agent] = {}
    for name, entry in spec.agents.items():
        if isinstance(entry, PauseSpec):
            from cachegraph.agents.pause import PauseAgent

            agents[name] = PauseAgent(name, entry, upstream=tuple(upstream[name]))
            continue
        if isinstance(entry, SubgraphSpec):
            raise ConfigError(f"agent {name!r} is a graph, and this version can't run those yet")
        model = spec.models.get(entry.model, entry.model)
        agents[name] = create(name, entry, model, folder, inputs=inputs, upstream=tuple(upstream[name]))
    return agents


class Exit(NamedTuple):
    """Where a reply goes: to which node, into which place of its inbox, by which route."""

    receiver: int
    place: int
    route: Route


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


@dataclass(frozen=True, slots=True)
class Wiring:
    """The nodes of a graph in recipe order, how many messages each waits for, and which of them wait for none."""

    nodes: tuple[Node, ...]
    waits: tuple[int, ...]
    first: tuple[Node, ...]


def wire(
    spec: GraphSpec, order: Plan, agents: Mapping[str, Agent], folder: Path, decide: Decide | None = None
) -> Wiring:
    """Decide every edge of a checked recipe whose agents are open. Raises ChannelError where one may not fall back."""
    index = {name: i for i, name in enumerate(spec.agents)}
    peers: dict[str, Peer] = {name: agents[name].peer() for name in index}
    entries: list[list[Route]] = [[] for _ in index]
    exits: list[list[Exit]] = [[] for _ in index]
    for edge in spec.edges:
        route = _route(edge, peers[edge.sender], peers[edge.receiver], folder, decide)
        receiver = index[edge.receiver]
        exits[index[edge.sender]].append(Exit(receiver, len(entries[receiver]), route))
        entries[receiver].append(route)
    told = {spec.output, *_whose_data_is_read(spec)}
    depth = [order.steps[name].depth for name in index]  # who is furthest from the output starts first
    nodes = tuple(
        Node(
            index=i,
            name=name,
            agent=agents[name],
            model=peers[name].name,
            timeout=spec.agents[name].timeout,
            entries=tuple(entries[i]),
            exits=tuple(sorted(exits[i], key=lambda exit: -depth[exit.receiver])),
            needs_text=name in told or any(exit.route.needs_text for exit in exits[i]),
            needs_cache=any(exit.route.needs_cache for exit in exits[i]),
        )
        for name, i in index.items()
    )
    waits = tuple(len(routes) for routes in entries)
    first = sorted((node for node in nodes if not node.entries), key=lambda node: -depth[node.index])
    return Wiring(nodes, waits, tuple(first))


def _whose_data_is_read(spec: GraphSpec) -> Iterator[str]:
    """Senders of which a receiver reads the data, which comes with the text, whatever the edge carries."""
    for edge in spec.edges:
        receiver = spec.agents[edge.receiver]
        if isinstance(edge, TextEdge) or not isinstance(receiver, AgentSpec):
            continue
        if any(edge.sender in compile_template(each or "", None).fields for each in (receiver.prompt, receiver.system)):
            yield edge.sender


def _route(edge: EdgeSpec, sender: Peer, receiver: Peer, folder: Path, decide: Decide | None) -> Route:
    if isinstance(edge, TextEdge):
        return Route(edge, "text")  # nothing to decide, and no need to load what knows caches
    if decide is None:
        from cachegraph.channels import create

        decide = create.route
    return decide(edge, sender, receiver, folder)
