"""The agent that runs an included recipe."""

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio

from cachegraph.agents.base import CLOSED, Agent, Reply, Turn
from cachegraph.agents.prompt.expression import Expression, compile_expression
from cachegraph.agents.prompt.filters import Value
from cachegraph.agents.prompt.render_threads import TextWork
from cachegraph.agents.prompt.template import Template, TemplateProblem, compile_template
from cachegraph.agents.schema_threads import run_checks
from cachegraph.agents.subgraph import SubgraphSpec
from cachegraph.channels.payload import Payload
from cachegraph.channels.peer import Peer
from cachegraph.errors import ChannelError, InputError, RunError

from ..plan.plan import Plan, plan
from ..plan.wiring import Node, Wiring, wire
from ..recipe.inputs import check_inputs
from ..recipe.spec import GraphSpec
from ..recipe.swap_channels import with_inner_channels
from .agent_set import AgentSet
from .executor import RunContext
from .result import Result
from .run import Run

__all__ = ["SubgraphAgent", "all_nodes", "answering_node", "open_and_wire"]


class SubgraphAgent:
    """An agent that runs a graph. Stateless between runs, so concurrent runs may share it."""

    def __init__(self, name: str, entry: SubgraphSpec, spec: GraphSpec, folder: Path, agents: Mapping[str, Agent]):
        self.name = name
        self._file = entry.graph
        self._spec = spec
        self._folder = folder
        self._agent_set = AgentSet(agents)
        self._given = {key: _read(source) for key, source in entry.inputs.items()}
        self._wiring: Wiring | None = None

    async def open(self) -> None:
        """Open all inner agents. Raises the first error."""
        await self._agent_set.open()

    async def wired(self, entry: SubgraphSpec) -> "SubgraphAgent":
        """Return this open agent with the channels of an entry, ready for turns; shares the inner agents."""
        other = copy(self)
        other._spec = with_inner_channels(self._spec, entry)
        other._wiring = await open_and_wire(other._spec, plan(other._spec), self._agent_set, self._folder)
        return other

    def peer(self) -> Peer:
        """Its output agent as a sender; it receives inputs, which are text."""
        inner: Peer = self._agent_set.agents[self._spec.output].peer()
        why = f"agent {self.name!r} is a graph, and what a graph is given are words"
        return replace(
            inner,
            agent=self.name,
            why_none_in=why,
            reads=frozenset(f"{self.name}/{n}" for n in inner.reads),
            holds=frozenset(),
        )

    async def close(self) -> None:
        """Close all inner agents."""
        await self._agent_set.close()

    async def turn(self, turn: Turn) -> Reply:
        """Run the graph. Raises RunError with the inner agent's name."""
        given = await self._inputs(turn)
        inputs = await run_checks(partial(check_inputs, self._spec.inputs, given))
        context = turn.within or RunContext(perf_counter())
        inside = replace(
            context,
            agents=f"{context.agents}{self.name}/",
            turns=f"{turn.id}/",
            wants_cache=turn.needs_cache,
            cache_layers=turn.cache_layers,
        )
        run = Run(self._spec, inputs, self._prepared, within=inside)
        result = await run.execute()
        payload = self._payload(run, result, turn)
        timing, tokens = replace(result.totals.timing, total=0.0), result.totals.tokens  # the total is wall-clock time
        edges = {(f"{self.name}/{a}", f"{self.name}/{b}"): report for (a, b), report in result.edges.items()}
        traffic = {(f"{self.name}/{a}", f"{self.name}/{b}"): part for (a, b), part in result.traffic.items()}
        finish = next((result.agents[n].finish_reason for n in self._spec.outputs.values() if n in run.replies), None)
        return Reply(
            payload,
            timing,
            tokens,
            inside=result.agents,
            inside_edges=edges,
            inside_traffic=traffic,
            turns=result.totals.turns,
            finish_reason=finish,
        )

    @property
    def loading(self) -> Mapping[str, Mapping[str, float]]:
        return self._agent_set.loading

    @property
    def wiring(self) -> Wiring:
        """The inner nodes. Raises RunError once the graph is closed."""
        if (wiring := self._wiring) is None:
            raise RunError(CLOSED.format(repr(self.name)))
        return wiring

    async def _prepared(self) -> Wiring:
        return self.wiring

    def _payload(self, run: Run, result: Result, turn: Turn) -> Payload:
        answers = [run.replies[name] for name in self._spec.outputs.values() if name in run.replies]
        answer = answers[0] if answers else Payload(self.name, "")
        several = len(self._spec.outputs) > 1
        return Payload(
            self.name,
            answer.text,
            answer.cache,
            answer.write,
            dict(result.outputs) if several else answer.data,
            answer.rebuild,
            answer.recover,
            turn=turn.id,
        )

    async def _inputs(self, turn: Turn) -> dict[str, Any]:
        values: dict[str, Any] = dict(turn.inputs)
        for delivery in turn.deliveries:
            payload = delivery.payload
            values[delivery.route.edge.sender] = Value(await payload.read(), payload.turn, payload.data)
        try:
            if all(given.bounded for given in self._given.values()):
                return self._evaluated(values, turn)
            return await TextWork().run(lambda: self._evaluated(values, turn))
        except TemplateProblem as problem:
            raise InputError(f"the inputs of agent {self.name!r} can't be made: {problem.message}") from problem

    def _evaluated(self, values: Mapping[str, Any], turn: Turn) -> dict[str, Any]:
        return {key: self._value(key, given, values, turn) for key, given in self._given.items()}

    def _value(self, key: str, given: Expression | Template, values: Mapping[str, Any], turn: Turn) -> Any:
        known = {**dict.fromkeys(given.names, ""), **values}  # a skipped sender has an empty text
        value = given.evaluate(known) if isinstance(given, Expression) else given.render(known).text
        if isinstance(value, Value):
            return value  # the same text inside, so it needs no graft
        return Value(value, f"{turn.id}/{key}") if isinstance(value, str) else value


def all_nodes(wiring: Wiring, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """Yield every node with its full name, including those of included recipes."""
    for node in wiring.nodes:
        yield prefix + node.name, node
        if isinstance(node.agent, SubgraphAgent):
            yield from all_nodes(node.agent.wiring, f"{prefix}{node.name}/")


def answering_node(wiring: Wiring) -> tuple[str, Node]:
    """Return the node that writes the first output, and its full name; looks into included recipes."""
    name = ""
    while True:
        node = wiring.nodes[wiring.outputs[0]]
        name += node.name
        if not isinstance(node.agent, SubgraphAgent):
            return name, node
        name, wiring = f"{name}/", node.agent.wiring


async def open_and_wire(spec: GraphSpec, order: Plan, agent_set: AgentSet, folder: Path) -> Wiring:
    """Open the agents and decide the edges of a graph and of the recipes it includes.

    Raises ChannelError for an edge that no channel can serve.
    """
    await agent_set.open()
    agents = dict(agent_set.agents)
    for name, entry in spec.graphs.items():
        if isinstance(agent := agents[name], SubgraphAgent):
            try:
                agents[name] = await agent.wired(entry)
            except ChannelError as error:
                raise ChannelError(f"in {name!r}: {error}") from error
    # In a thread: this reads fusers from disk, and the first cache edge imports torch.
    wiring = await anyio.to_thread.run_sync(wire, spec, order, agents, folder)
    inside = [
        warning.inside(name)
        for name, agent in agents.items()
        if isinstance(agent, SubgraphAgent)
        for warning in agent.wiring.warnings
    ]
    return replace(wiring, warnings=(*wiring.warnings, *inside)) if inside else wiring


def _read(source: str) -> Expression | Template:
    """Compile an input: a single expression in braces keeps its type, anything else is text."""
    try:
        return compile_expression(source, None) if source.strip().startswith("{{") else compile_template(source, None)
    except TemplateProblem:
        return compile_template(source, None)
