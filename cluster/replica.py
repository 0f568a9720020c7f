"""The actor of one replica: a model, and the agents that take their turns with it."""

import os
import pickle
import platform
import warnings
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

import anyio
import anyio.to_thread
import ray
from ray.exceptions import RayActorError, RayError
from torch import Tensor

from cachegraph import __version__
from cachegraph.agents.base import Delivery, Reply, Scored, ToolCall, Turn
from cachegraph.agents.local.agent import LocalAgent
from cachegraph.agents.prompt.prompt_view import PromptSnapshot
from cachegraph.agents.tools.content import Content
from cachegraph.agents.tools.parse_calls import ParsedCall
from cachegraph.channels import load_route
from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.payload import Payload, Route
from cachegraph.channels.peer import SharerEngine
from cachegraph.engine.batching.request_context import request_context
from cachegraph.engine.kv.cache import KV
from cachegraph.engine.pool import Lease, lease
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import CachegraphError, RunError, reason_of

from .asker import Runs, current_asker
from .event_log import EventLog, TurnEvents
from .messages import (
    AgentSetup,
    Asker,
    EdgeSetup,
    Missing,
    Opened,
    PrefillAnswer,
    ReplicaAnswer,
    ReplicaFacts,
    TurnRequest,
    without_network,
)
from .nodes import store_bytes
from .remote_engine import RemoteEngine, SharerGone
from .remote_tools import RemoteTools
from .stored_cache import CacheStore, StoredKV, is_dropped
from .turn_tasks import TurnTasks

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from cachegraph.channels.cache.edge_plan import EdgePlan

__all__ = ["Replica", "own_versions"]

T = TypeVar("T")

_request: ContextVar[str] = ContextVar("cachegraph_request")  # the turn that this task works on

REMEMBERED = 8  # a replica keeps its latest caches in this part of the object store, for the next turns


class _TextMissing(Exception):
    """A turn needs the text of a reply that has not been written."""

    def __init__(self, sender: str):
        self.sender = sender
        super().__init__(sender)


class _CachesLost(Exception):
    """Caches that a turn needs are gone."""

    def __init__(self, senders: frozenset[str]):
        self.senders = senders
        super().__init__(", ".join(senders))


def own_versions() -> dict[str, str]:
    """The versions that must be equal in all processes, so that they understand each other and compute the same."""
    packages = {name: version(name) for name in ("ray", "torch", "transformers")}
    return {"cachegraph": __version__, "python": platform.python_version(), **packages}


class Replica:
    """One model in a process of its own. Methods are called by Ray; all run in one event loop."""

    def __init__(self, key: str, model: ModelSpec, folder: Path, allow_paths: bool, threads: int | None):
        import torch

        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to a cache
        if threads is not None:
            torch.set_num_threads(threads)
        self._key = key
        self._model, self._folder, self._allow_paths = model, folder, allow_paths
        self._lease: Lease | None = None
        self._loading = anyio.Lock()
        self._tasks = TurnTasks()
        self._agents: dict[str, LocalAgent] = {}
        self._plans: dict[tuple[str, str], EdgePlan | None] = {}
        self._sharers: dict[str, RemoteEngine] = {}
        node = ray.get_runtime_context().get_node_id()
        self._store = CacheStore(store_bytes().get(node, 0) // REMEMBERED)
        self._runs = Runs()
        self._scopes: dict[str, anyio.CancelScope] = {}
        self._events: dict[str, EventLog] = {}
        self._writers: dict[str, Payload] = {}

    # before runs

    async def load(self) -> ReplicaFacts:
        """Load the model. Raises ModelError or ConfigError."""
        async with self._loading:
            waited = self._lease is None
            if self._lease is None:
                self._lease = await lease(self._model, self._folder, allow_paths=self._allow_paths)
                await self._tasks.start()
        model = without_network(self._opened.engine.model, tokenizer=False)
        node = ray.get_runtime_context().get_node_id()
        return ReplicaFacts(model, node, os.getpid(), waited)

    async def versions(self) -> tuple[str, dict[str, str]]:
        """The node and the versions of this process, in types that every version understands."""
        return ray.get_runtime_context().get_node_id(), own_versions()

    async def model(self) -> object:
        """The model as other replicas need it: without its network."""
        await self.load()
        return without_network(self._opened.engine.model, tokenizer=True)

    async def open_agent(self, setup: AgentSetup) -> Opened:
        """Create and open an agent, once. Raises ModelError, ConfigError or RunError."""
        await self.load()
        agent = self._agents.get(setup.id)
        if agent is None:
            agent = LocalAgent(
                setup.name,
                setup.spec,
                self._model,
                self._folder,
                inputs=setup.inputs,
                upstream=setup.upstream,
                tools=None if setup.tools is None else RemoteTools(setup.spec.tool_limits, setup.tools, self._ask),
                allow_paths=self._allow_paths,
            )
            await agent.open()
            self._agents[setup.id] = agent
        return Opened(replace(agent.peer(), engine=None), {})

    async def route(self, setup: EdgeSetup, sharer: "ActorHandle | None") -> Route | Missing:
        """Decide an edge into an agent and keep its plan. `sharer`: a replica of another model at the other end."""
        receiver = self._agents[setup.agent].peer()
        sender = setup.sender
        if setup.model == self._key:
            sender = replace(sender, engine=self._opened.engine)
        elif setup.model is not None:
            assert sharer is not None
            try:
                sender = replace(sender, remote=await self._sharer(setup.model, sharer))
            except SharerGone as gone:
                return Missing(sharers=frozenset([gone.model]))
        decide = partial(load_route.route, setup.edge, sender, receiver, setup.folder, setup.fusers)
        route = await anyio.to_thread.run_sync(decide)
        self._plans[setup.key] = route.plan
        return replace(route, plan=None)

    async def _sharer(self, key: str, actor: "ActorHandle") -> SharerEngine:
        if key not in self._sharers:
            try:
                model = await actor.model.remote()
            except RayActorError as error:
                raise SharerGone(key) from error
            engine = self._opened.engine
            self._sharers[key] = RemoteEngine(key, model, actor, engine, self._store, current_asker)
        self._sharers[key].actor = actor
        return self._sharers[key]

    # turns

    async def turn(self, request: TurnRequest) -> ReplicaAnswer[Reply]:
        """Take a turn. Its cache goes to the object store."""
        prompts: list[str] = []

        async def take(agent: LocalAgent, turn: Turn) -> Reply:
            if request.streams:
                log = self._log(request.id)
                turn = replace(turn, on_prompt=log.prompt, on_text=log.text, on_tool=log.tool, on_prefill=log.view)
            else:
                turn = replace(turn, on_prompt=prompts.append)
            reply = await agent.turn(turn)
            if (write := reply.payload.write) is not None:
                self._writers[request.id] = Payload(reply.payload.sender, write=write)
            cache = reply.payload.cache
            if cache is not None:
                reply.payload.cache = await anyio.to_thread.run_sync(self._store.store_cache, cache, request.room)
            reply.payload.write = None
            return reply

        try:
            answer = await self._tasks.run(partial(self._answer, request, take))
        finally:
            if request.streams:
                self._log(request.id).close()
        prompt = prompts[-1] if prompts else None
        return replace(answer, prompt=prompt, writes=request.id in self._writers)

    async def rebuild(
        self, request: TurnRequest, ids: Sequence[int], calls: Sequence[ToolCall]
    ) -> ReplicaAnswer[SentCache]:
        """Recompute the cache of an earlier turn."""

        async def rebuild(agent: LocalAgent, turn: Turn) -> SentCache:
            cache = await agent.rebuild(turn, ids, calls)
            return await anyio.to_thread.run_sync(self._store.store_cache, cache, request.room)

        return await self._tasks.run(partial(self._answer, request, rebuild))

    async def judge(self, request: TurnRequest, choices: Sequence[str], verbatim: bool) -> ReplicaAnswer[Scored]:
        """Score choices as replies to a turn."""
        judge = partial(LocalAgent.judge, choices=choices, verbatim=verbatim)
        return await self._tasks.run(partial(self._answer, request, judge))

    async def write(self, request: str) -> str:
        """Write the reply of an earlier turn for a late reader."""
        return await self._writers[request].read()

    async def heard(self, request: str) -> TurnEvents | None:
        """Wait for events of a turn: all since the last call; None after the last one."""
        events = await self._log(request).take()
        if events is None:
            self._events.pop(request, None)
        elif events.view is not None:
            view = await anyio.to_thread.run_sync(PromptSnapshot.of, events.view)
            events = events._replace(view=view)
        return events

    async def _ask(self, call: ParsedCall) -> Content:
        return await self._log(_request.get()).ask(call)

    async def tool_result(self, request: str, number: int, result: Content) -> None:
        """The result of a tool call that a turn has asked for."""
        if (log := self._events.get(request)) is not None:
            log.answer(number, result)

    async def cancel(self, request: str) -> None:
        """Cancel a turn; it frees everything within one decoding step."""
        if (scope := self._scopes.get(request)) is not None:
            scope.cancel()
        self._events.pop(request, None)

    async def at_work(self) -> int:
        """The number of turns at work."""
        return len(self._scopes)

    async def forget(self, requests: Sequence[str]) -> None:
        """Nobody will read the late replies of these turns."""
        for request in requests:
            self._writers.pop(request, None)

    async def end(self, runs: list[str]) -> None:
        """These runs have ended."""
        self._runs.end(runs)

    async def prefill(
        self,
        ids: list[int],
        past: Sequence[KV],
        positions: Tensor | None,
        logits: Literal["none", "last", "all"],
        layers: int | None,
        asker: Asker,
    ) -> PrefillAnswer:
        """Read a prompt as the sharer of an agent in another replica; see `Engine.prefill`. `positions`: (ids,)."""
        engine = self._opened.engine

        async def read() -> PrefillAnswer:
            before = await self._store.fetch(past, engine.model.device)
            with request_context(self._runs.context(asker)):
                done = await engine.prefill(ids, before, positions=positions, logits=logits, layers=layers)
            own = done.segments[len(done.segments) - done.own :]
            stored = await anyio.to_thread.run_sync(self._store.store, own)
            return PrefillAnswer(stored, None if done.logits is None else done.logits.cpu(), done.cost)

        return await self._tasks.run(read)

    @property
    def _opened(self) -> Lease:
        if self._lease is None:
            raise RunError(f"the replica of {self._model.source!r} has not loaded its model")
        return self._lease

    def _log(self, request: str) -> EventLog:
        return self._events.setdefault(request, EventLog())

    async def _answer(self, request: TurnRequest, work: Callable[[LocalAgent, Turn], Awaitable[T]]) -> ReplicaAnswer[T]:
        """Do the work with the turn's caches; an error of the agent is part of the answer."""
        self._scopes[request.id] = scope = anyio.CancelScope()
        _request.set(request.id)
        try:
            with scope, request_context(self._runs.context(request.asker)):
                for key, actor in request.sharers.items():
                    await self._sharer(key, actor)
                seconds: dict[str, dict[str, float]] = {}
                turn = await self._received(request.agent, request.turn, seconds)
                value = await work(self._agents[request.agent], turn)
                edges = value.edges if isinstance(value, Reply | Scored) else {}
                for sender in seconds.keys() & edges.keys():
                    edges[sender].seconds.update(seconds[sender])
                return ReplicaAnswer(value)
        except _TextMissing as missing:
            return ReplicaAnswer(missing=Missing(texts=frozenset([missing.sender])))
        except _CachesLost as lost:
            return ReplicaAnswer(missing=Missing(caches=lost.senders))
        except SharerGone as gone:
            return ReplicaAnswer(missing=Missing(sharers=frozenset([gone.model])))
        except Exception as error:  # a boundary: every error of a turn travels to the run as an answer
            return ReplicaAnswer(error=_portable(error))
        finally:
            del self._scopes[request.id]
        return ReplicaAnswer(error=RunError("the turn was cancelled"))

    async def _received(self, agent: str, turn: Turn, seconds: dict[str, dict[str, float]]) -> Turn:
        """The turn with the caches and plans of its edges, and by sender the seconds that caches took on the way.

        Raises _CachesLost.
        """
        lost: set[str] = set()
        device = self._opened.engine.model.device

        async def receive(delivery: Delivery) -> Delivery:
            payload, edge = delivery.payload, delivery.route.edge
            cache = payload.cache
            if cache is not None:
                began, stored = perf_counter(), cache.segments
                try:
                    cache = None if is_dropped(cache) else await self._store.fetch_cache(cache, device)
                except RayError:
                    cache = None
                if cache is None:
                    lost.add(edge.sender)
                stores = sum(segment.seconds for segment in stored if isinstance(segment, StoredKV))
                seconds[edge.sender] = {"store": stores, "fetch": perf_counter() - began}
            plan = self._plans.get((agent, edge.model_dump_json()))
            route = replace(delivery.route, plan=plan if delivery.route.used != "text" else None)
            return Delivery(route, replace(payload, cache=cache, write=partial(_missing, edge.sender)))

        async def receive_turn(turn: Turn) -> Turn:
            control = turn.control
            if control is not None and control.other is not None:
                control = replace(control, other=await receive_turn(control.other))
            return replace(turn, deliveries=[await receive(delivery) for delivery in turn.deliveries], control=control)

        received = await receive_turn(turn)
        if lost:
            raise _CachesLost(frozenset(lost))
        return received


async def _missing(sender: str) -> NoReturn:
    raise _TextMissing(sender)


def _portable(error: Exception) -> Exception:
    """The error as it can travel."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, CachegraphError):
        with suppress(Exception):  # pickle raises anything; such an error travels as its sentence
            return pickle.loads(pickle.dumps(error))  # type: ignore[no-any-return]  # noqa: S301  # our own
    return RunError(f"{type(error).__name__}: {reason_of(error)}")
