"""One execution of a graph: every agent starts as soon as all it waits for has arrived.

A counter per agent says how many messages are still to come; whoever brings it to zero starts the agent. The task that
finished an agent goes on with the first one it has set free and starts a new task for each of the others, so a chain of
any length is one task. An agent's error is a value here, not an exception: it ends the run or only what depends on it,
as the recipe says. Knows nothing of models, channels or YAML.
"""

import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from cachegraph.agents.base import Delivery, Paused, Reply, Turn
from cachegraph.channels.message import EdgeReport, Message, Route
from cachegraph.errors import CachegraphError, InputError, RunError

from .events import (
    AgentCancelled,
    AgentFailed,
    AgentFinished,
    AgentPaused,
    AgentStarted,
    EdgeTravelled,
    Event,
    RunFinished,
    RunStarted,
    TextDelta,
)
from .journal import Journal, note, take_turn
from .probe import Probe
from .result import UNKEPT, AgentResult, Result, RunStatus
from .routes import Node, Wiring
from .spec import GraphSpec

__all__ = ["Listener", "Prepare", "Run"]

Listener = Callable[[Event], None]
Prepare = Callable[[], Awaitable[Wiring]]


class Run:
    """One run. `execute` is called once; `result` may be read at any time, during the run and after it."""

    _group: TaskGroup
    _wiring: Wiring

    def __init__(
        self,
        spec: GraphSpec,
        inputs: Mapping[str, Any],
        prepare: Prepare,
        listener: Listener | None = None,
        probe: Probe | None = None,
        journal: Journal | None = None,
    ):
        self._spec = spec
        self._inputs = inputs
        self._prepare = prepare
        self._listener = listener
        self._probe = probe
        self._journal = journal
        self._began = 0.0
        self._seconds = 0.0  # set when the run ends
        self._status: RunStatus = "not_started"
        self._error: str | None = None
        self._agents: dict[str, AgentResult] = {}  # those that have started, or never will
        self._edges: dict[tuple[str, str], EdgeReport] = {}
        self._waits: list[int] = []
        self._inboxes: dict[int, list[Delivery | None]] = {}  # a message lives here until its receiver takes it
        self._cancelled: set[int] = set()
        self._failures: dict[str, Exception] = {}
        self._written = 0  # tokens, by all agents
        most = spec.limits.max_concurrent
        self._limiter = None if most is None else anyio.CapacityLimiter(most)

    @property
    def result(self) -> Result:
        """What is known by now. Agents that have not started are listed too."""
        agents = {name: self._agents.get(name) or AgentResult() for name in self._spec.agents}
        if self._status == "running":
            agents = {name: replace(agent) for name, agent in agents.items()}
        pairs = [(edge.sender, edge.receiver) for edge in self._spec.edges]
        return Result(
            graph=self._spec.name,
            status=self._status,
            output=self._spec.output,
            text=agents[self._spec.output].text or "",
            error=self._error,
            seconds=self._now() if self._status == "running" else self._seconds,
            agents=agents,
            edges={pair: self._edges[pair] for pair in pairs if pair in self._edges},
        )

    async def execute(self) -> Result:
        """Run to the end. Raises RunError with the result so far; errors of loading models pass as they are."""
        self._status = "running"
        self._began = perf_counter()
        try:
            self._wiring = await self._prepare()
            self._waits = list(self._wiring.waits)
            if self._listener:
                self._listener(RunStarted(self._now(), self._spec.name))
            await self._all_agents()
            cause = self._conclude()
        except Exception as error:
            self._end("failed", _sentence(error))
            raise
        except BaseException:  # cancelled from outside, or Ctrl-C
            self._end("cancelled", "the run was cancelled")
            raise
        result = self.result
        if result.status == "failed":
            raise RunError(result.error or "", result) from cause
        return result

    async def _all_agents(self) -> None:
        timeout = self._spec.limits.timeout
        with anyio.move_on_after(timeout) as clock:
            async with anyio.create_task_group() as self._group:
                for node in self._wiring.first:
                    self._group.start_soon(self._follow, node, name=node.name)
        if clock.cancelled_caught:
            busy = ", ".join(repr(name) for name, agent in self._agents.items() if agent.status == "running")
            at_work = f" with {busy} still at work" if busy else ""
            self._error = f"the run took longer than its limit of {timeout:g} s (limits.timeout){at_work}"

    async def _follow(self, node: Node) -> None:
        """Serve a node, then one of those it has set free, and so on; the others get tasks of their own."""
        while True:
            if self._limiter is None:
                ready = await self._serve(node)
                await checkpoint()  # agents that never wait must not keep others, timeouts and Ctrl-C from their turn
            else:
                async with self._limiter:
                    ready = await self._serve(node)
            if not ready:
                return
            node = ready[0]
            for i in range(1, len(ready)):
                self._group.start_soon(self._follow, ready[i], name=ready[i].name)

    async def _serve(self, node: Node) -> list[Node]:
        agent = AgentResult("running", model=node.model, started=self._now(), turn=node.name)
        self._agents[node.name] = agent
        if self._listener:
            self._listener(AgentStarted(self._now(), node.name))
        try:
            reply = await self._reply(node)
            self._fill(agent, reply)
            if self._journal is not None:
                await note(self._journal, node.name, agent, reply)
        except Paused as pause:
            self._pause(node, agent, pause.question)
            return []
        except Exception as error:
            self._fail(node, agent, error)
            return []
        self._finish(node, agent, reply)
        return self._hand_over(node, reply.message)

    async def _reply(self, node: Node) -> Reply:
        if node.timeout is None:
            return await self._turn(node)
        with anyio.move_on_after(node.timeout):
            return await self._turn(node)
        raise RunError(f"it took longer than its timeout of {node.timeout:g} s (agents.{node.name}.timeout)")

    async def _turn(self, node: Node) -> Reply:
        if self._probe is not None and self._probe.skip == node.name:
            self._next_turn(node)
            return Reply(Message(node.name, ""))
        # The turn is nobody's variable: it must not outlive the agent's own use of the caches in it.
        reply = await take_turn(self._journal, node.name, node.agent, self._next_turn(node))
        reply.message.turn = node.name
        if node.needs_text and reply.message.text is None:
            await reply.message.read()
        return reply

    def _next_turn(self, node: Node) -> Turn:
        turn = Turn(
            self._inputs,
            self._inboxes.pop(node.index, ()),  # type: ignore[arg-type]  # complete, or the node would not run
            node.needs_text,
            node.needs_cache,
            self._deltas(node.name) if self._listener else None,
            partial(setattr, self._agents[node.name], "prompt"),
            most - self._written if (most := self._spec.limits.max_tokens) is not None else None,
            node.name,
            self._probe.controls.get(node.name) if self._probe else None,
        )
        if self._probe is not None:
            self._probe.turns[node.name] = turn
        return turn

    def _deltas(self, name: str) -> Callable[[str], None]:
        listener = self._listener
        assert listener is not None
        return lambda text: listener(TextDelta(self._now(), name, text))

    def _fill(self, agent: AgentResult, reply: Reply) -> None:
        agent.status, agent.prompt = "finished", None
        self._written += reply.tokens.generated
        agent.text = reply.message.text
        agent.data = reply.message.data
        agent.timing = timing = reply.timing
        agent.tokens = reply.tokens
        timing.total = timing.total or self._now() - (agent.started or 0.0)

    def _finish(self, node: Node, agent: AgentResult, reply: Reply) -> None:
        for route in node.entries:
            edge = route.edge
            report = reply.edges.get(edge.sender) or EdgeReport(edge.channel, route.used, route.fallback_reason)
            self._edges[edge.sender, node.name] = report
            if self._listener:
                self._listener(EdgeTravelled(self._now(), edge.sender, node.name, report))
        if self._listener:
            self._listener(AgentFinished(self._now(), node.name, agent, recalled=reply.recalled))

    def _hand_over(self, node: Node, message: Message) -> list[Node]:
        """Put the message into the inboxes it goes to; gives the nodes that now have all they waited for."""
        ready = []
        for receiver, place, route in node.exits:
            if receiver in self._cancelled:
                continue
            inbox = self._inboxes.get(receiver)
            if inbox is None:
                inbox = self._inboxes[receiver] = [None] * self._wiring.waits[receiver]
            inbox[place] = Delivery(route, _as_needed(message, route))
            self._waits[receiver] -= 1
            if not self._waits[receiver]:
                ready.append(self._wiring.nodes[receiver])
        return ready

    def _pause(self, node: Node, agent: AgentResult, question: str) -> None:
        if self._journal is None:
            self._fail(node, agent, InputError(UNKEPT))
            return
        agent.status, agent.prompt = "paused", question
        if self._listener:
            self._listener(AgentPaused(self._now(), node.name, question))

    def _fail(self, node: Node, agent: AgentResult, error: Exception) -> None:
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        _forget_locals(error)
        agent.status = "failed"
        agent.error = _sentence(error)
        self._failures[node.name] = error
        if self._listener:
            self._listener(AgentFailed(self._now(), node.name, agent.error, kind=type(error).__name__))
        self._cancel_dependents(node)
        if self._spec.on_error == "stop":
            self._group.cancel_scope.cancel()

    def _cancel_dependents(self, failed: Node) -> None:
        doomed = [failed]
        while doomed:
            for receiver, _, _ in doomed.pop().exits:
                if receiver in self._cancelled:
                    continue
                self._cancelled.add(receiver)
                self._inboxes.pop(receiver, None)
                node = self._wiring.nodes[receiver]
                self._agents[node.name] = AgentResult(
                    "cancelled", error=f"agent {failed.name!r} upstream of it failed", model=node.model
                )
                if self._listener:
                    self._listener(AgentCancelled(self._now(), node.name, failed.name))
                doomed.append(node)

    def _conclude(self) -> Exception | None:
        """End the run with the status it deserves; gives the error to blame if it failed."""
        if self._error is not None:
            self._end("failed", self._error)
            return None
        if not self._failures:
            paused = any(agent.status == "paused" for agent in self._agents.values())
            self._end("paused" if paused else "finished", None)
            return None
        name, cause = next(iter(self._failures.items()))
        others = len(self._failures) - 1
        message = f"agent {name!r} failed: {self._agents[name].error}"
        message += f" (and {others} more failed)" if others else ""
        goes_on = self._spec.on_error == "continue" and self._agents[self._spec.output].status == "finished"
        self._end("partial" if goes_on else "failed", message)
        return cause

    def _end(self, status: RunStatus, error: str | None) -> None:
        self._status = status
        self._error = error
        self._seconds = self._now()
        self._inboxes.clear()
        if status != "finished":
            for agent in self._agents.values():
                if agent.status == "running":
                    agent.status = "cancelled"
        if self._listener:
            self._listener(RunFinished(self._seconds, self.result))

    def _now(self) -> float:
        return perf_counter() - self._began


def _as_needed(message: Message, route: Route) -> Message:
    """The message without its cache where only its text is read, so that no reader of words keeps a cache alive."""
    if (message.cache is None and message.rebuild is None) or route.needs_cache or message.text is None:
        return message
    return Message(message.sender, message.text, data=message.data, turn=message.turn)


def _sentence(error: BaseException) -> str:
    return str(error) if isinstance(error, CachegraphError) else f"{type(error).__name__}: {error}"


def _forget_locals(error: BaseException | None) -> None:
    """Let go of what the frames of a traceback hold (messages, caches) and keep the lines it names."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
