"""The driver's side of an agent: chooses a replica for every turn, and takes the turn elsewhere if that one dies."""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import anyio
import anyio.from_thread

from cachegraph.agents.base import CLOSED, ChoiceScore, Delivery, Reply, Scored, ToolCall, Turn
from cachegraph.agents.run_settings import with_settings
from cachegraph.agents.tools.agent_tools import AgentTools
from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.payload import Payload, Route
from cachegraph.channels.peer import Peer
from cachegraph.channels.spec import EdgeSpec
from cachegraph.common.run_all import run_all
from cachegraph.errors import RunError

from .asker import current_asker
from .head import HeadSilent, current_head
from .messages import AgentSetup, EdgeSetup, Missing, Opened, ReplicaAnswer, TurnRequest, deliveries_of, portable_turn
from .remote_engine import RemoteEngine
from .remote_tools import ToolAsked, TurnCalls
from .replica_set import ReplicaHandle, ReplicaSet
from .spoken import SpokenText
from .store_budget import StoreBudget
from .stored_cache import is_dropped, without_tensors
from .wait import ReplicaGone, call

if TYPE_CHECKING:
    from ray.actor import ActorHandle

__all__ = ["RemoteAgent"]

T = TypeVar("T")

ATTEMPTS = 5  # replicas of one turn that may die before it is given up
Ask = Callable[[ReplicaHandle, TurnRequest], Awaitable[ReplicaAnswer[T]]]


class RemoteAgent:
    """An agent whose model runs in replicas. It keeps no state of a run."""

    def __init__(
        self,
        setup: AgentSetup,
        replicas: ReplicaSet,
        sets: Mapping[str, ReplicaSet],
        budget: StoreBudget,
        tools: AgentTools | None = None,
    ):
        self.name = setup.name
        self._setup = setup
        self._replicas = replicas
        self._sets = sets  # of all models, for sharers
        self._budget = budget
        self._tools = tools
        self._sent = 0  # bytes of the largest cache of a turn so far
        self._edges: dict[tuple[str, str], EdgeSetup] = {}
        self._peer: Peer | None = None
        self.loading: dict[str, dict[str, float]] = {}

    async def open(self) -> None:
        """Load the model in its first replica, and open this agent there. Raises ModelError or ConfigError."""
        if self._peer is not None:
            return
        if self._tools is not None:
            await self._tools.open()
            self._setup = replace(self._setup, tools=self._tools.named)
        self._replicas.take()
        try:
            peer = await self._open()
        except BaseException:  # also a cancellation
            self._replicas.give_back()
            raise
        if self._peer is not None:  # another run has opened it meanwhile
            self._replicas.give_back()
        self._peer = peer

    async def _open(self) -> Peer:
        for _ in range(ATTEMPTS):
            handle = await self._choose()
            try:
                facts = await handle.load()
                opened: Opened = await call(handle.actor.open_agent, self._setup)
            except ReplicaGone:
                self._replicas.drop(handle)
                continue
            handle.agents.add(self._setup.id)
            return replace(opened.peer, remote=RemoteEngine(self._replicas.key, facts.model))
        raise RunError(f"agent {self.name!r} can't be opened: {ATTEMPTS} replicas of its model died as they started")

    def peer(self) -> Peer:
        """This agent as one end of an edge. Raises RunError once the graph is closed."""
        if self._peer is None:
            raise RunError(CLOSED.format(repr(self.name)))
        return self._peer

    async def close(self) -> None:
        """Give the model back; its replicas end with the last agent that uses them."""
        if self._peer is not None:
            self._peer = None
            self._replicas.give_back()
        if self._tools is not None:
            await self._tools.close()

    def route(self, edge: EdgeSpec, sender: Peer, folder: Path, fusers: Sequence[str]) -> Route:
        """Decide an edge in a replica, which keeps the plan and its networks."""
        model = sender.remote.key if isinstance(sender.remote, RemoteEngine) else None
        setup = EdgeSetup(self._setup.id, edge, replace(sender, engine=None, remote=None), model, folder, tuple(fusers))
        route = anyio.from_thread.run(self._decide, setup)
        self._edges[setup.key] = setup
        return route

    async def _decide(self, setup: EdgeSetup) -> Route:
        for _ in range(ATTEMPTS):
            handle = await self._choose()
            try:
                await self._prepare(handle)
                route = await self._route_in(handle, setup)
            except ReplicaGone:
                self._replicas.drop(handle)
                continue
            handle.edges.add(setup.key)
            return route
        raise RunError(f"{ATTEMPTS} replicas of {self._replicas.model.source!r} died before an edge was decided")

    # turns

    async def turn(self, turn: Turn) -> Reply:
        """Take the turn in a replica. If that one dies, another starts it again, and no text is streamed twice."""
        memory = turn.memory
        turn = self._seeded(turn if memory is None else replace(turn, memory=memory.snapshot()))
        calls = None if self._tools is None else TurnCalls(self.name, self._tools)
        spoken = SpokenText(self.name, turn, calls)

        async def ask(handle: ReplicaHandle, request: TurnRequest) -> ReplicaAnswer[Reply]:
            try:
                answer: ReplicaAnswer[Reply] = await call(handle.actor.turn, request)
            except ReplicaGone:
                if calls is not None:
                    await calls.settle()
                raise
            return answer

        handle, request, answer = await self._answer(turn, ask, spoken)
        reply = answer.value
        assert reply is not None
        payload = reply.payload
        if memory is not None and reply.memory is not None and reply.remembered is not None:
            memory.add_told(reply.memory.turns, reply.remembered, payload.text or "")
        kept = _light(turn)
        if answer.writes:
            payload.write = partial(self._write_later, handle, request.id, kept)
        if payload.cache is not None:
            self._sent = max(self._sent, payload.cache.nbytes)
            payload.cache = self._budget.hold(payload.cache, _node(handle))
            payload.recover = partial(self.rebuild, kept, tuple(reply.ids), tuple(reply.tool_calls))
        return reply

    async def rebuild(self, turn: Turn, ids: Sequence[int], calls: Sequence[ToolCall] = ()) -> SentCache:
        """Recompute an earlier turn's cache by prefill alone. It has no tensors if the store has no room for them."""
        borrows = self._budget.is_borrowing

        async def ask(handle: ReplicaHandle, request: TurnRequest) -> ReplicaAnswer[SentCache]:
            request = replace(request, room=None) if borrows else request
            answer: ReplicaAnswer[SentCache] = await call(handle.actor.rebuild, request, ids, calls)
            return answer

        handle, _, answer = await self._answer(turn, ask)
        assert answer.value is not None
        return self._budget.hold(answer.value, _node(handle))

    async def score(self, turn: Turn, choices: Sequence[str], *, verbatim: bool = False) -> list[ChoiceScore]:
        """Score each choice as a reply to the turn."""
        return (await self.judge(turn, choices, verbatim=verbatim)).scores

    async def judge(self, turn: Turn, choices: Sequence[str], *, verbatim: bool = False) -> Scored:
        """Score the choices, and report the edges."""

        async def ask(handle: ReplicaHandle, request: TurnRequest) -> ReplicaAnswer[Scored]:
            answer: ReplicaAnswer[Scored] = await call(handle.actor.judge, request, choices, verbatim)
            return answer

        _, _, answer = await self._answer(turn, ask)
        assert answer.value is not None
        return answer.value

    async def _write_later(self, handle: ReplicaHandle, request: str, turn: Turn) -> str:
        """Read the reply of a turn whose text nobody had asked for; if its replica is gone, take the turn again."""
        try:
            text: str = await call(handle.actor.write, request)
            with suppress(Exception):  # the connection may be lost
                handle.actor.forget.remote([request])
            return text
        except ReplicaGone:
            self._replicas.drop(handle)
        again = replace(turn, needs_text=True, needs_cache=False)
        return (await self.turn(again)).payload.text or ""

    async def _answer(
        self, turn: Turn, ask: Ask[T], spoken: SpokenText | None = None
    ) -> tuple[ReplicaHandle, TurnRequest, ReplicaAnswer[T]]:
        """Ask replicas until one answers. Raises the agent's error, or RunError if too many die."""
        async with AsyncExitStack() as borrowed:
            return await self._answer_borrowing(turn, ask, spoken, borrowed)

    async def _answer_borrowing(
        self, turn: Turn, ask: Ask[T], spoken: SpokenText | None, borrowed: AsyncExitStack
    ) -> tuple[ReplicaHandle, TurnRequest, ReplicaAnswer[T]]:
        turn = await self._complete(turn, borrowed)
        deaths = 0
        while deaths < ATTEMPTS:
            handle = await self._choose(None if turn.memory is None else turn.memory.folder)
            try:
                with handle.working():
                    await self._prepare(handle)
                    request = self._request(turn, handle, spoken)
                    with self._budget.expecting(_node(handle), self._sent if turn.needs_cache else 0):
                        answer = await self._asked(handle, request, ask, spoken)
            except ReplicaGone:
                self._replicas.drop(handle)
                deaths += 1
                continue
            if answer.missing is not None:
                deaths += bool(answer.missing.sharers)
                await self._provide(answer.missing, turn, request)
                turn = await self._complete(turn, borrowed)
                continue
            if answer.prompt is not None and turn.on_prompt is not None:
                turn.on_prompt(answer.prompt)
            if answer.error is not None:
                raise answer.error
            return handle, request, answer
        model = self._replicas.model.source
        raise RunError(f"{ATTEMPTS} replicas of {model!r} died in the turn of agent {self.name!r}; look at Ray's logs")

    async def _choose(self, session: Path | None = None) -> ReplicaHandle:
        """Choose a replica, once the head answers if one has to be started. Raises ClusterLost, or ConfigError."""
        while True:
            try:
                return self._replicas.choose(session)
            except HeadSilent:
                head = current_head()
                assert head is not None
                await head.answered()

    async def _complete(self, turn: Turn, borrowed: AsyncExitStack) -> Turn:
        """The turn with the caches that are not in the object store, computed again.

        One that the store has room for is kept for its other readers; the rest is given up with `borrowed`.
        """
        dropped = {
            delivery.payload: delivery.payload.cache for delivery in deliveries_of(turn) if _is_dropped(delivery)
        }
        if not dropped:
            return turn
        size = sum(cache.nbytes for cache in dropped.values() if cache is not None)
        await borrowed.enter_async_context(self._budget.borrow(size))
        again: dict[Payload, Payload] = {}
        for payload in dropped:
            if payload.recover is None or payload.cache is None or not is_dropped(payload.cache):
                continue  # another reader has computed it meanwhile
            cache = await payload.recover()
            if cache is not None and self._budget.holds(cache):
                payload.cache = cache
            else:
                again[payload] = replace(payload, cache=cache)
        return _replaced(turn, again)

    async def _prepare(self, handle: ReplicaHandle) -> None:
        """Open this agent in a replica that does not have it yet, and decide its edges there."""
        await handle.load()
        if self._setup.id not in handle.agents:
            await call(handle.actor.open_agent, self._setup)
            handle.agents.add(self._setup.id)
        for key, setup in list(self._edges.items()):
            if key not in handle.edges:
                await self._route_in(handle, setup)
                handle.edges.add(key)

    async def _route_in(self, handle: ReplicaHandle, setup: EdgeSetup) -> Route:
        """Decide an edge in a replica, with a replica of the sender's model that is alive."""
        for _ in range(ATTEMPTS):
            sharer = self._sharer(setup)
            found: Route | Missing = await call(handle.actor.route, setup, sharer)
            if isinstance(found, Route):
                return found
            for key in found.sharers:
                self._sets[key].drop_actor(sharer)
        raise RunError(f"{ATTEMPTS} replicas of the model of {setup.sender.agent!r} died as an edge was decided")

    def _request(self, turn: Turn, handle: ReplicaHandle, spoken: SpokenText | None) -> TurnRequest:
        keys = {setup.model for setup in self._edges.values()} - {None, self._replicas.key}
        sharers = {key: self._sets[key].choose().actor for key in keys if key is not None}
        streams = spoken is not None and spoken.is_heard
        room = self._budget.room(_node(handle))
        return TurnRequest(uuid4().hex, self._setup.id, portable_turn(turn), current_asker(), sharers, room, streams)

    def _sharer(self, setup: EdgeSetup) -> "ActorHandle | None":
        """A replica of the model at an edge's other end, if that is another model."""
        same = setup.model is None or setup.model == self._replicas.key
        return None if same or setup.model is None else self._sets[setup.model].choose().actor

    async def _asked(
        self, handle: ReplicaHandle, request: TurnRequest, ask: Ask[T], spoken: SpokenText | None
    ) -> ReplicaAnswer[T]:
        """One attempt. If this task is cancelled, so is the turn in the replica."""
        try:
            if not request.streams or spoken is None:
                return await ask(handle, request)
            listen = partial(self._listen, handle, request.id, spoken)
            calls: list[Callable[[], Awaitable[Any]]] = [partial(ask, handle, request), listen]
            answer: ReplicaAnswer[T]
            answer, _ = await run_all(calls)
            return answer
        except anyio.get_cancelled_exc_class():
            with suppress(Exception):  # the connection may be lost
                handle.actor.cancel.remote(request.id)
            raise

    async def _listen(self, handle: ReplicaHandle, request: str, spoken: SpokenText) -> None:
        spoken.begin()
        while (heard := await call(handle.actor.heard, request)) is not None:
            spoken.hear(heard)
            for asked in heard.events:
                if isinstance(asked, ToolAsked) and spoken.tools is not None:
                    result = await spoken.tools.make(asked)
                    await call(handle.actor.tool_result, request, asked.number, result)

    async def _provide(self, missing: Missing, turn: Turn, request: TurnRequest) -> None:
        """Write texts, and forget lost caches and dead sharers, so that the turn can be taken."""
        for delivery, sent in zip(deliveries_of(turn), deliveries_of(request.turn), strict=True):
            payload, sender = delivery.payload, delivery.route.edge.sender
            if sender in missing.texts:
                await payload.read()
            if sender in missing.caches and payload.cache is not None and payload.cache is sent.payload.cache:
                if payload.recover is None:
                    raise RunError(f"the cache of {sender!r} is lost with its replica; run again")
                payload.cache = without_tensors(payload.cache)
        for key in missing.sharers:
            self._sets[key].drop_actor(request.sharers[key])

    def _seeded(self, turn: Turn) -> Turn:
        """Give a sampled reply a seed, so that another replica would write the same text."""
        generate = with_settings(self._setup.spec, turn).generate
        if generate.temperature == 0 or generate.seed is not None:
            return turn
        return replace(turn, generate={**(turn.generate or {}), "seed": random.getrandbits(31)})


def _node(handle: ReplicaHandle) -> str:
    """The node of a replica that is loaded."""
    assert handle.node is not None
    return handle.node


def _is_dropped(delivery: Delivery) -> bool:
    cache = delivery.payload.cache
    return delivery.route.needs_cache and cache is not None and is_dropped(cache)


def _replaced(turn: Turn, payloads: Mapping[Payload, Payload]) -> Turn:
    """The turn with other payloads, also in the turn whose caches a control takes instead."""
    control = turn.control
    if control is not None and control.other is not None:
        control = replace(control, other=_replaced(control.other, payloads))
    deliveries = [
        replace(delivery, payload=payloads.get(delivery.payload, delivery.payload)) for delivery in turn.deliveries
    ]
    return replace(turn, deliveries=deliveries, control=control)


def _light(turn: Turn) -> Turn:
    """The turn to take again, without callbacks and without holding on to caches that can be recomputed."""
    deliveries = [replace(delivery, payload=_light_payload(delivery)) for delivery in turn.deliveries]
    return replace(turn, deliveries=deliveries, on_text=None, on_prompt=None, on_tool=None, on_prefill=None)


def _light_payload(delivery: Delivery) -> Payload:
    payload = delivery.payload
    cache = payload.cache if delivery.route.needs_cache else None
    if cache is not None and payload.recover is not None:
        cache = without_tensors(cache)
    return replace(payload, cache=cache, rebuild=None)
