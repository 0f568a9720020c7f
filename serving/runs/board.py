"""The runs of this server: live ones, recently ended ones with their events, and all others in the store.

A run enters the store before its client gets its id. A stopping server parks its live runs in the store; a later
server of the same recipes resumes them.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from cachegraph.engine.batching.request_context import current_context, request_context
from cachegraph.errors import CachegraphError, InputError, RunError
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.load import parse_recipe
from cachegraph.graph.run.result import Result
from cachegraph.graph.run.stream import RunStream
from cachegraph.graph.store import Store
from cachegraph.graph.store.run_owner import RunAtWorkError

from ..changed_recipe import changed_graph
from ..config import ServerConfig
from ..errors import ApiError
from ..run_queue import RunQueue
from ..served_graphs import ServedGraphs
from .live_run import LiveRun

if TYPE_CHECKING:
    from cachegraph.graph.store.records import RunInfo, StoredRun

    from ..generation import Call

__all__ = ["RunBoard"]

KEPT = 200  # ended runs whose events stay in memory
KEPT_EVENT_BYTES = 64_000_000  # of those runs together
KEPT_TOKENS = 1_000_000  # of prompts that stay in memory for viewers
MOST_STARTS = 3
GIVEN_UP = (
    "the server's process ended {starts} times while this run was at work, so the server does not resume it; "
    "`cachegraph runs resume` does"
)
log = logging.getLogger("cachegraph.serving")


class RunBoard:
    """Starts and resumes runs in the task group `group`.

    `on_end` is called with every result, its tenant, and whether a client changed the recipe.
    """

    group: TaskGroup
    on_end: Callable[[Result, str | None, bool], None]

    def __init__(self, graphs: ServedGraphs, queue: RunQueue, config: ServerConfig):
        self._graphs, self._queue, self._config = graphs, queue, config
        self._store = Store()
        self._runs: dict[str, LiveRun] = {}
        self._parks = False

    def store_of(self, tenant: str | None) -> Store:
        """Return the store, restricted to this tenant's runs."""
        return self._store.within(_prefix(tenant))

    async def begin(self, call: "Call", tenant: str | None) -> LiveRun:
        """Enter a run into the store and start it. Raises ApiError if the queue is full."""
        stream = call.graph.stream(call.inputs, store=self.store_of(tenant), session=call.session)
        return await self._start(stream, tenant, own_graph=call.graph if call.own_graph else None)

    async def answer(self, run: str, answer: str, turn: str | None, tenant: str | None) -> LiveRun:
        """Answer and resume a paused run. Raises ApiError or InputError if it has no open question."""
        stored = await self.get(run, tenant)
        return await self._resume(stored, tenant, answer, turn)

    async def cancel(self, run: str, tenant: str | None) -> None:
        """Cancel a run and wait until it has ended. Raises ApiError if it is not live."""
        await self.get(run, tenant)
        live = self._runs.get(run)
        if live is None or not live.at_work:
            raise ApiError(409, f"run {run!r} is not at work", "not_at_work")
        live.scope.cancel()
        await live.ended()

    async def get(self, run: str, tenant: str | None) -> "StoredRun":
        """Return a stored run of this tenant. Raises ApiError."""
        missing = ApiError(404, f"there is no run {run[:64]!r}", "run_not_found")
        if not run.startswith(_prefix(tenant)) or len(run) > 64:
            raise missing
        try:
            stored = await run_sync(self._store.get, run)
        except InputError as error:
            raise missing from error
        if stored.id != run:
            raise missing
        return stored

    async def list(
        self, tenant: str | None, limit: int, skip: int, graph: str | None, status: str | None
    ) -> "Sequence[RunInfo]":
        """List this tenant's runs, newest first."""
        store = self.store_of(tenant)
        return await run_sync(lambda: store.list(limit, skip=skip, graph=graph, status=status))

    def live(self, run: str) -> LiveRun | None:
        """Return the run with its events, if this process has them."""
        return self._runs.get(run)

    def park(self) -> None:
        """Stop all runs, also those that are about to begin; a later server resumes them."""
        self._parks = True
        for live in self._runs.values():
            if live.at_work and live.stream is not None:
                _park(live, live.stream)

    async def drained(self) -> None:
        """Wait until no run is live, then close the store."""
        for live in list(self._runs.values()):
            await live.ended()
        await run_sync(self._store.close)

    async def resume_interrupted(self) -> None:
        """Resume runs that an earlier server of these recipes left unfinished.

        Runs that were at work in the last two crashes are resumed one after the other, so that one that ends the
        process does so alone. A run that was at work in `MOST_STARTS` crashes and finished no turn has failed.
        """
        suspects = []
        for tenant in self._config.tenants:
            for info in await self.list(tenant, 10_000, 0, None, "interrupted"):
                if self._graphs.get(info.graph) is None:
                    continue
                with _logged(info.id):
                    stored = await self.get(info.id, tenant)
                    if stored.outcome.starts >= MOST_STARTS:
                        await run_sync(self._store.give_up, stored.id, GIVEN_UP.format(starts=stored.outcome.starts))
                        log.error("run %s is not resumed: %s", stored.id, GIVEN_UP.format(starts=stored.outcome.starts))
                    elif stored.outcome.starts > 1:
                        suspects.append((stored, tenant))
                    else:
                        await self._resume(stored, tenant, waits=True)
        self.group.start_soon(self._resume_in_turn, suspects)

    async def _resume_in_turn(self, suspects: "Sequence[tuple[StoredRun, str | None]]") -> None:
        for stored, tenant in suspects:
            if self._queue.stopping:
                return
            with _logged(stored.id):
                await (await self._resume(stored, tenant, waits=True)).ended()

    async def _resume(
        self,
        stored: "StoredRun",
        tenant: str | None,
        answer: str | None = None,
        turn: str | None = None,
        waits: bool = False,
    ) -> LiveRun:
        stream, own = await run_sync(self._resumed, stored, tenant, answer, turn)
        try:
            return await self._start(stream, tenant, waits=waits, own_graph=own)
        except RunAtWorkError as error:  # another process is resuming it
            raise ApiError(409, "the run is at work already", "at_work") from error

    def _resumed(
        self, stored: "StoredRun", tenant: str | None, answer: str | None, turn: str | None
    ) -> tuple[RunStream, Graph | None]:
        """Resume a run; the graph is that of a changed recipe, else None. Call it in a thread: it reads the recipe."""
        served, setting = self._graphs.get(stored.graph), stored.setting
        if served is not None:
            spec = parse_recipe(
                stored.recipe,
                allow_env=setting.allow_env,
                allow_paths=True,
                allow_code=True,
                allow_local=True,
                folder=served.graph.folder,
            )
            graph, own = served.variant_of(spec), None
            if graph is None and self._config.allow_upload:
                graph = own = changed_graph(stored.recipe, served.source, self._config.limits)
            if graph is not None:
                store = self.store_of(tenant)
                return graph.stream_resumed(stored.id, answer=answer, turn=turn, store=store), own
        raise InputError(f"the recipe {stored.graph!r} of run {stored.id!r} is not one that this server has now")

    async def _start(
        self, stream: RunStream, tenant: str | None, *, waits: bool = False, own_graph: Graph | None = None
    ) -> LiveRun:
        """Start a run. `own_graph` is closed after it, or if it can't start."""
        try:
            self._queue.take(tenant, waits=waits)
            try:
                run = await stream.enter()
            except BaseException:
                self._queue.give_back(tenant)
                raise
        except BaseException:
            await _close(own_graph)
            raise
        assert run is not None
        if earlier := self._runs.get(run):  # in the store, an attempt ends a moment before its task does
            with anyio.CancelScope(shield=True):  # this attempt is in the store, so its task must start
                await earlier.ended()
        live = self._runs.pop(run, None) or LiveRun(run, tenant, self._config.limits.event_bytes)
        self._runs[run] = live
        live.begin(stream, own_graph)
        self._forget_old()
        if self._parks:  # `park` was called while the run entered the store
            _park(live, stream)
        self.group.start_soon(self._work, live, stream)
        return live

    def _forget_old(self) -> None:
        """Keep the events of the latest ended runs that fit, and the prompts of fewer."""
        ended = [run for run in self._runs.values() if not run.at_work]
        tokens, size = KEPT_TOKENS, KEPT_EVENT_BYTES
        for count, run in enumerate(reversed(ended)):
            tokens, size = tokens - run.prompt_tokens, size - run.event_bytes
            if count >= KEPT or size < 0:
                del self._runs[run.id]
            elif tokens < 0:
                run.forget_prompts()

    async def _work(self, live: LiveRun, stream: RunStream) -> None:
        try:
            with live.scope, request_context(replace(current_context(), tenant=live.tenant)):
                await self._in_turn(live, stream)
        except RunError as error:
            log.info("run %s failed: %s", live.id, error)
        except Exception:  # a boundary: the run has ended, and the server continues
            log.exception("run %s failed", live.id)
        finally:
            self._queue.give_back(live.tenant)
            self.on_end(stream.result, live.tenant, live.own_graph is not None)
            await _close(live.own_graph)
            live.end()
            self._forget_old()

    async def _in_turn(self, live: LiveRun, stream: RunStream) -> None:
        waiting = True
        try:
            async with self._queue.turn(live.tenant):
                waiting = False
                with anyio.move_on_after(self._config.limits.seconds):
                    async with stream:
                        async for event in stream:
                            live.add(event)
        finally:
            if waiting:  # it must also end in the store
                with anyio.CancelScope(shield=True), anyio.move_on_after(0):
                    async with stream:
                        async for event in stream:
                            live.add(event)


@contextmanager
def _logged(run: str) -> Iterator[None]:
    """Log why a run can't be resumed."""
    try:
        yield
    except (CachegraphError, ApiError) as error:
        log.warning("run %s stays interrupted: %s", run, error)


def _park(live: LiveRun, stream: RunStream) -> None:
    stream.park()
    live.scope.cancel()


async def _close(graph: Graph | None) -> None:
    if graph is not None:
        with anyio.CancelScope(shield=True):
            await graph.aclose()


def _prefix(tenant: str | None) -> str:
    """Return the prefix of a tenant's run ids."""
    return "server-" if tenant is None else f"t{hashlib.sha256(tenant.encode()).hexdigest()[:16]}-"
