"""One execution of a graph.

`readiness.py` knows which agents may start, `executor.py` takes an agent's turn, and `edge_conditions.py` decides where
its reply goes. A task that finished an agent continues with the first agent that became ready, and starts a new task
for each other one, so a chain of any length is one task. An agent's error is a value here, not an exception: it ends
the run, or only the agents that depend on it, as the recipe says. Independent of models, channels and YAML.
"""

import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from traceback import clear_frames
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from cachegraph.agents.base import Delivery, Paused, Reply, Timing, Tokens, Traffic
from cachegraph.agents.prompt.filters import Value
from cachegraph.agents.sessions.session import Session
from cachegraph.channels.payload import EdgeReport, Payload
from cachegraph.common.surrogates import mend
from cachegraph.errors import CachegraphError, InputError, RunError

from ..plan.wiring import Node, Wiring
from ..recipe.spec import GraphSpec
from ..run_warning import RunWarning
from .edge_conditions import EdgeConditions
from .events import (
    AgentCancelled,
    AgentFailed,
    AgentFinished,
    AgentPaused,
    AgentSkipped,
    AgentStarted,
    EdgeTravelled,
    RunFinished,
    RunStarted,
)
from .executor import Listener, RunContext, TokensLeft, TurnExecutor, record_reply
from .hooks import RunHooks
from .readiness import Readiness
from .result import UNKEPT, AgentResult, Loading, Result, RunStatus, Totals
from .run_warnings import run_warnings
from .turn_log import TurnLog, note

__all__ = ["Listener", "Prepare", "Run"]

Prepare = Callable[[], Awaitable[Wiring]]
CANCELLED = "the run was cancelled"
KEPT = 8  # earlier turns per agent that a result holds


class Run:
    """One run. Call `execute` once; read `result` at any time, during the run or after it."""

    _group: TaskGroup
    _wiring: Wiring
    _readiness: Readiness
    _executor: TurnExecutor

    def __init__(
        self,
        spec: GraphSpec,
        inputs: Mapping[str, Any],
        prepare: Prepare,
        listener: Listener | None = None,
        hooks: RunHooks | None = None,
        turn_log: TurnLog | None = None,
        within: RunContext | None = None,
    ):
        self._spec = spec
        self._inputs = inputs
        self._prepare = prepare
        self._turn_log = turn_log  # a stored run gets one when it begins
        self._conditions = EdgeConditions()
        self.conversation: Session | None = None  # continued by this run
        self.parks = False  # on cancellation, leave a stored run interrupted, so that it can be resumed
        self.generate: Mapping[str, Any] | None = None  # GenerateSpec fields that override those of the outputs
        self._seconds = 0.0  # set when the run ends
        self._status: RunStatus = "not_started"
        self._error: str | None = None
        self._agents: dict[str, AgentResult] = {}  # agents that have started, or never will
        self._edges: dict[tuple[str, str], EdgeReport] = {}
        self._traffic: dict[tuple[str, str], Traffic] = {}
        self._totals = Totals()
        self._loading = Loading()
        self.take_loading: Callable[[], Loading] = Loading  # loading times, available once the run is prepared
        self._failures: dict[str, Exception] = {}
        self._warnings: tuple[RunWarning, ...] = ()
        most = spec.limits.max_concurrent
        limiter = None if most is None else anyio.CapacityLimiter(most)
        self._inside = within is not None
        context = within or RunContext(0.0, listener, hooks=hooks)
        tokens = spec.limits.max_tokens
        spent = context.spent if tokens is None else TokensLeft(tokens, context.spent)
        self._context = replace(context, limiter=limiter or context.limiter, spent=spent)
        self.replies: dict[str, Payload] = {}  # of the outputs, for an outer graph

    @property
    def result(self) -> Result:
        """The current result, including agents that have not started."""
        agents = {name: self._agents.get(name) or AgentResult() for name in self._spec.agents}
        if self._status == "running":
            agents = {name: replace(agent) for name, agent in agents.items()}
        pairs = [(edge.sender, edge.receiver) for edge in self._spec.edges]
        outputs = {key: agents[name].text or "" for key, name in self._spec.outputs.items() if _has_run(agents[name])}
        return Result(
            graph=self._spec.name,
            status=self._status,
            output=self._spec.output,
            text=next(iter(outputs.values()), ""),
            outputs=outputs,
            error=self._error,
            seconds=self._context.now() if self._status == "running" else self._seconds,
            agents=agents,
            edges={pair: self._edges[pair] for pair in dict.fromkeys([*pairs, *self._edges]) if pair in self._edges},
            traffic={pair: replace(part) for pair, part in self._traffic.items()},
            totals=self._totals.copy(),
            loading=self._loading,
            warnings=[*self._warnings, *run_warnings(agents, self._edges)],
        )

    async def enter(self) -> str | None:
        """Enter the run into its store before it begins and return its id; None without a store."""
        return None

    async def execute(self) -> Result:
        """Run to the end. Raises RunError with the partial result; propagates model loading errors unchanged."""
        if self.conversation is None:
            return await self._execute()
        async with self.conversation:
            return await self._execute()

    async def _execute(self) -> Result:
        self._status = "running"
        if not self._inside:
            self._context = replace(
                self._context,
                began=perf_counter(),
                turn_log=self._turn_log,
                conversation=self.conversation,
                generate=self.generate,
            )
        try:
            self._wiring = await self._prepare()
            self._loading = self.take_loading()
            self._warnings = self._wiring.warnings
            self._readiness = Readiness(self._wiring, self._skip, self._cancel)
            self._executor = TurnExecutor(self._context, self._inputs, self._wiring.outputs)
            if self._context.listener and not self._inside:
                self._context.listener(RunStarted(self._context.now(), self._spec.name, self._warnings))
            await self._all_agents()
            cause = self._conclude()
        except Exception as error:  # noted in the result, and raised again
            self._end("failed", _sentence(error))
            raise
        except BaseException:  # cancelled by the caller, or Ctrl-C
            self._end("cancelled", CANCELLED)
            raise
        result = self.result
        if result.status == "failed":
            raise RunError(result.error or "", result) from cause
        return result

    async def _all_agents(self) -> None:
        timeout = self._spec.limits.timeout
        with anyio.move_on_after(timeout) as clock:
            async with anyio.create_task_group() as self._group:
                for node in self._ready():
                    self._group.start_soon(self._follow, node, name=node.name)
        if clock.cancelled_caught:
            busy = ", ".join(repr(name) for name, agent in self._agents.items() if agent.status == "running")
            at_work = f" with {busy} still at work" if busy else ""
            self._error = f"the run took longer than its limit of {timeout:g} s (limits.timeout){at_work}"

    async def _follow(self, node: Node) -> None:
        """Run a node, then one that became ready, and so on; start tasks for the others."""
        while True:
            await self._serve(node)
            ready = self._ready()
            if self._wiring.joins_early and all(map(self._readiness.is_over, self._wiring.outputs)):
                self._group.cancel_scope.cancel()  # agents still running lost a race
            await checkpoint()  # agents that never await must not starve others, timeouts and Ctrl-C
            if not ready:
                return
            node = ready[0]
            for i in range(1, len(ready)):
                self._group.start_soon(self._follow, ready[i], name=ready[i].name)

    def _ready(self) -> list[Node]:
        ready, self._readiness.ready = self._readiness.ready, []
        return ready

    async def _serve(self, node: Node) -> None:
        agent = self._begin(node)
        deliveries = [delivery for delivery in self._readiness.take(node) if delivery is not None]
        try:
            reply, agent.items = await self._executor.take(node, agent, deliveries)
            record_reply(agent, reply, self._context.now())
            for delivery in deliveries:  # agents other than local ones report none
                reply.edges.setdefault(delivery.route.edge.sender, EdgeReport.of(delivery.route))
            self._count(agent, reply.timing, reply.tokens, reply.turns)
            outgoing = await self._conditions.out_of(node, reply.payload, self._values, self._readiness.goes_round)
            if self._context.turn_log is not None and node.for_each is None and not node.is_graph:
                await note(self._context.turn_log, agent.turn, agent, reply)
        except Paused as pause:
            self._pause(node, agent, pause.question)
            return
        except Exception as error:  # a value here: it ends the agents that depend on this one
            deliveries = []  # the error's traceback must not keep their caches alive
            self._fail(node, agent, error)
            return
        except BaseException as error:  # cancelled; asyncio keeps the error, and with it the frames and their caches
            deliveries = []
            clear_frames(error.__traceback__)
            raise
        if self._inside and node.index in self._wiring.outputs:
            self.replies[node.name] = reply.payload
        self._finish(node, agent, reply, deliveries)
        self._readiness.finished(node, outgoing)

    def _count(self, agent: AgentResult, timing: Timing, tokens: Tokens, turns: int) -> None:
        """Add an agent's work to its totals and the run's."""
        for time in (agent.total_timing, self._totals.timing):
            time.add(timing)
        for positions in (agent.total_tokens, self._totals.tokens):
            positions.add(tokens)
        self._totals.turns += turns

    def _count_edge(self, pair: tuple[str, str], part: Traffic) -> None:
        self._traffic.setdefault(pair, Traffic()).add(part)
        self._totals.bytes += part.bytes

    def _begin(self, node: Node) -> AgentResult:
        context, name = self._context, node.name
        before = self._agents.get(name)
        turns = before.turns + 1 if before else 1
        turn_id = context.turns + (name if turns == 1 else f"{name}#{turns}")
        agent = AgentResult("running", model=node.model, started=context.now(), turn=turn_id, turns=turns)
        if before and before.turns:
            agent.earlier = [*before.earlier, replace(before, earlier=[])][-KEPT:]
            agent.total_timing, agent.total_tokens = replace(before.total_timing), replace(before.total_tokens)
        self._agents[name] = agent
        if context.listener:
            context.listener(AgentStarted(context.now(), context.agents + name, turn=turn_id))
        return agent

    def _values(self, names: Collection[str]) -> Mapping[str, Any]:
        """Return the variables of conditions: inputs, and the latest reply of each agent that has one."""
        values = {name: self._inputs[name] for name in names if name in self._inputs}
        for name in names:
            agent = self._agents.get(name)
            if agent is not None and _has_run(agent):
                values[name] = Value(agent.text or "", name, agent.data)
        return values

    def _finish(self, node: Node, agent: AgentResult, reply: Reply, deliveries: Sequence[Delivery]) -> None:
        context = self._context
        for delivery in deliveries:
            edge = delivery.route.edge
            report = reply.edges[edge.sender]
            self._edges[edge.sender, node.name] = report
            self._count_edge((edge.sender, node.name), Traffic.of(report))
            if context.listener:
                ends = (context.agents + edge.sender, context.agents + node.name)
                event = EdgeTravelled(context.now(), *ends, report, sender_turn=delivery.payload.turn, turn=agent.turn)
                context.listener(event)
        self._edges.update(reply.inside_edges)
        for pair, part in reply.inside_traffic.items():
            self._count_edge(pair, part)
        if context.listener:
            context.listener(
                AgentFinished(
                    context.now(), context.agents + node.name, agent, turn=agent.turn, recalled=reply.recalled
                )
            )

    def _pause(self, node: Node, agent: AgentResult, question: str) -> None:
        context = self._context
        if context.turn_log is None:
            self._fail(node, agent, InputError(UNKEPT))
            return
        agent.status, agent.prompt = "paused", question
        if context.listener:
            context.listener(AgentPaused(context.now(), context.agents + node.name, question, turn=agent.turn))

    def _fail(self, node: Node, agent: AgentResult, error: Exception) -> None:
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        _forget_locals(error)
        agent.status = "failed"
        agent.error = _sentence(error)
        if node.is_graph and isinstance(error, RunError) and isinstance(error.result, Result):
            agent.inside, spent = error.result.agents, error.result.totals
            self._count(agent, spent.timing, spent.tokens, spent.turns)
        self._failures[node.name] = error
        context = self._context
        if context.listener:
            name, kind = context.agents + node.name, type(error).__name__
            context.listener(AgentFailed(context.now(), name, agent.error, turn=agent.turn, kind=kind))
        self._readiness.failed(node)
        if self._spec.on_error == "stop":
            self._group.cancel_scope.cancel()

    def _skip(self, node: Node) -> None:
        context = self._context
        if node.name not in self._agents:  # otherwise keep its result of an earlier round
            self._agents[node.name] = AgentResult("skipped", model=node.model, turn=context.turns + node.name)
        if context.listener:
            context.listener(AgentSkipped(context.now(), context.agents + node.name, turn=self._agents[node.name].turn))

    def _cancel(self, node: Node, failed: Node) -> None:
        why = f"agent {failed.name!r} upstream of it failed"
        self._agents[node.name] = AgentResult("cancelled", error=why, model=node.model)
        context = self._context
        if context.listener:
            turn_id = context.turns + node.name
            because = context.agents + failed.name
            context.listener(AgentCancelled(context.now(), context.agents + node.name, because, turn=turn_id))

    def _conclude(self) -> Exception | None:
        """Set the run's final status and return the error that caused a failure."""
        if self._error is not None:
            self._end("failed", self._error)
            return None
        if not self._failures:
            paused = any(agent.status == "paused" for agent in self._agents.values())
            if not paused:
                self._stop_losers()
            self._end("paused" if paused else "finished", None)
            return None
        name, cause = next(iter(self._failures.items()))
        others = len(self._failures) - 1
        message = f"agent {name!r} failed: {self._agents[name].error}"
        message += f" (and {others} more failed)" if others else ""
        answered = any(_has_run(self._agents.get(name)) for name in self._spec.outputs.values())
        self._end("partial" if self._spec.on_error == "continue" and answered else "failed", message)
        return cause

    def _stop_losers(self) -> None:
        """Report agents as stopped whose replies no early join waits for any longer."""
        for node in self._wiring.nodes if self._wiring.joins_early else ():
            agent = self._agents.setdefault(node.name, AgentResult(model=node.model))
            if agent.status in ("running", "not_started"):
                agent.status, agent.error = "cancelled", "nobody waits for its reply any more"
                context, output = self._context, self._context.agents + self._spec.output
                if context.listener:
                    name = context.agents + node.name
                    context.listener(AgentCancelled(context.now(), name, output, turn=agent.turn))

    def _end(self, status: RunStatus, error: str | None) -> None:
        self._status = status
        self._error = error
        self._seconds = self._context.now()
        if hasattr(self, "_readiness"):
            self._readiness.clear()
            self._executor.end()
        if status != "finished":
            for agent in self._agents.values():
                if agent.status == "running":
                    agent.status = "cancelled"
        if self._context.listener and not self._inside:
            self._context.listener(RunFinished(self._seconds, self.result))


def _has_run(agent: AgentResult | None) -> bool:
    return agent is not None and (agent.status == "finished" or agent.text is not None)


def _sentence(error: BaseException) -> str:
    return mend(str(error) if isinstance(error, CachegraphError) else f"{type(error).__name__}: {error}")


def _forget_locals(error: BaseException | None) -> None:
    """Clear the locals of a traceback's frames (payloads, caches), but keep its line numbers."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
