"""The Graph class."""

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from cachegraph.agents.create import Create, ModelHost, create_agent
from cachegraph.agents.schema_threads import run_checks
from cachegraph.agents.sessions.session import Session
from cachegraph.channels.spec import Channel
from cachegraph.errors import InputError, Problem, RecipeError, RunError

from .clusters import ClusterCopies, model_links
from .definition import GraphDefinition, Inputs
from .plan.plan import Plan
from .plan.wiring import Wiring
from .recipe.load import remembers
from .recipe.spec import GraphSpec
from .run.agent_set import AgentSet
from .run.batch import OnResult, RowResult, each_row, run_rows, stream_rows
from .run.create_agents import create_agents
from .run.result import UNKEPT, Loading, Result
from .run.run import Listener, Run
from .run.settings import check_settings
from .run.shared_wiring import SharedWiring
from .run.stream import RunStream, Stream
from .run.subgraph import open_and_wire
from .run.sync import wait
from .store import resume
from .tracing.enabled import watched

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Graph"]

_creating = threading.RLock()  # runs in several threads create the agents of a graph once


class Graph(GraphDefinition):
    """A graph of agents.

    Pass a whole `spec`, or its parts as keywords, or build it with `add_agent` and `add_edge`. The recipe's relative
    paths start at `folder`. `create` creates the agents (`cachegraph.agents.scripted.scripted` creates agents without
    models). Models load with the first run, or with `open`, and stay loaded until `close`.
    """

    def __init__(
        self,
        spec: GraphSpec | None = None,
        *,
        folder: str | os.PathLike[str] = ".",
        create: Create = create_agent,
        **parts: Any,
    ):
        super().__init__(spec, folder=folder, create=create, **parts)
        self._agent_set: AgentSet | None = None
        self._replaced: list[AgentSet] = []  # agents from before recipe changes, whose models may be loaded
        self._wiring = SharedWiring()
        self._settings: dict[str, Any] = {}  # GenerateSpec fields that override those of the outputs
        self._clusters: ClusterCopies[Graph] = ClusterCopies()
        self._host: ModelHost | None = None  # where its models run, if not in this process

    def with_channels(self, channel: Channel | Mapping[tuple[str, str], Channel]) -> Self:
        """Return a copy with this channel on every edge, or with other channels on the edges that a mapping names.

        Also applies to edges of included recipes; a mapping names them by ("team/expert", "team/answerer").
        The copy shares the loaded models. A cache edge that becomes a text edge keeps its options (`fuser`, `fallback`,
        ...), so that swapping back restores it.
        """
        other = type(self)(folder=self._folder, create=self._create)
        other._builder = self.validate()._builder.with_channels(channel)
        other._permissions = self._permissions
        other._file, other.strict = self._file, self.strict
        other._functions, other._settings = self._functions, self._settings
        other._host, other._clusters = self._host, self._clusters
        other._agent_set = self._agents_now()
        return other.validate()

    def with_settings(self, **settings: Any) -> Self:
        """Return a copy that decodes the outputs with other settings, such as `temperature=0.7` or `max_new_tokens=64`.

        The recipe does not change, and the copy shares the loaded models. Raises InputError for a setting that is
        invalid or that an output can't apply; checking a `json_schema` may take long.
        """
        spec = self.validate().spec
        changed = {**self._settings, **check_settings(spec, self._folder, self.permissions, settings)}
        self._agents_now()  # shared with the copy
        other = copy(self)
        other._builder = self._builder.copy()
        other._replaced = []
        other._settings = changed
        return other

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings changed by `with_settings`."""
        return self._settings

    def with_spec(self, spec: GraphSpec) -> Self:
        """Return a graph of another recipe with the same folder and permissions; close its models separately."""
        other = type(self)(spec, folder=self._folder, create=self._create)
        other._permissions = self._permissions
        other._functions = self._functions
        other.strict = self.strict
        return other

    def on_cluster(self, cluster: ModelHost) -> Self:
        """Return a copy whose models run on a cluster (`cachegraph.cluster.connect`); close its models separately."""
        may = self.permissions
        other = self.with_spec(self.validate().spec)
        links = model_links(self.spec, self._folder)
        other._create = cluster.creator(allow_local=may.reaches_local, allow_paths=may.allow_paths, links=links)
        other._file, other._settings = self._file, self._settings
        other._host = cluster
        return other

    @property
    def why_lost(self) -> str | None:
        """Why the cluster of this graph's models is lost for good; None while it is not, or if there is none."""
        return None if self._host is None else self._host.why_lost

    # running

    def run(
        self,
        inputs: Inputs = None,
        /,
        *,
        store: "Store | None" = None,
        session: str | None = None,
        cluster: ModelHost | str | None = None,
        **named: Any,
    ) -> Result:
        """Run once and wait. Raises InputError, RunError, or Interrupted (a KeyboardInterrupt) with the partial result.

        A `store` records every finished turn, so that another process can `resume` the run.
        `session` names a conversation, which agents with `memory` continue.
        `cluster` runs the models on Ray: `local`, `auto`, `ray://HOST:PORT`, or a connection. They stay loaded
        there until `close`.
        """
        if cluster is not None:
            return self._clusters.on(self, cluster).run(inputs, store=store, session=session, **named)
        run = self._new_run(self.check_inputs(inputs, **named), store, session)
        return wait(run.execute, "run", "graph.arun", lambda: run.result)

    async def arun(
        self,
        inputs: Inputs = None,
        /,
        *,
        store: "Store | None" = None,
        session: str | None = None,
        cluster: ModelHost | str | None = None,
        **named: Any,
    ) -> Result:
        """Run once, under asyncio or trio; see `run`. Raises InputError, or RunError with the partial `result`."""
        if cluster is not None:
            remote = await anyio.to_thread.run_sync(self._clusters.on, self, cluster)
            return await remote.arun(inputs, store=store, session=session, **named)
        return await (await self._checked_run(partial(self.check_inputs, inputs, **named), store, session)).execute()

    def stream(
        self,
        inputs: Inputs = None,
        /,
        *,
        store: "Store | None" = None,
        session: str | None = None,
        cluster: ModelHost | str | None = None,
        **named: Any,
    ) -> RunStream:
        """Run once and stream events as an async iterator; see `run`. The first read checks the inputs and starts it.

        So it is the first read that raises InputError, as awaiting `arun` does. Checks that take long run in a thread.
        """
        if cluster is not None:
            return self._clusters.on(self, cluster).stream(inputs, store=store, session=session, **named)
        begin = partial(self._checked_run, partial(self.check_inputs, inputs, **named), store, session)
        return RunStream(self._waiting_run(), begin)

    @classmethod
    def from_run(cls, run: str, store: "Store | None" = None, *, create: Create = create_agent) -> Self:
        """Load the graph of a stored run, with its original recipe, folder and permissions. Raises InputError."""
        return resume.load_graph(cls, run, store, create)

    def resume(
        self, run: str, *, answer: str | None = None, turn: str | None = None, store: "Store | None" = None
    ) -> Result:
        """Resume a stored run of this graph and wait, without repeating finished turns.

        `run` is its id or a unique prefix. `answer` is a person's answer to a paused run; `turn` selects the question
        if several are open. Raises InputError for a run that has finished, that another process is executing, or that
        has another recipe (`Graph.from_run` loads it).
        """
        execution = resume.resume_run(self, run, store, answer, turn)
        return wait(execution.execute, "resume", "graph.aresume", lambda: execution.result)

    async def aresume(
        self, run: str, *, answer: str | None = None, turn: str | None = None, store: "Store | None" = None
    ) -> Result:
        """Resume a stored run under asyncio or trio; see `resume`."""
        return await (await anyio.to_thread.run_sync(resume.resume_run, self, run, store, answer, turn)).execute()

    def stream_resumed(
        self, run: str, *, answer: str | None = None, turn: str | None = None, store: "Store | None" = None
    ) -> RunStream:
        """Resume a stored run and stream events, also of recalled turns; see `resume` and `stream`."""

        async def begin(listener: Listener) -> Run:
            return await anyio.to_thread.run_sync(resume.resume_run, self, run, store, answer, turn, listener)

        return RunStream(self._waiting_run(), begin)

    def map(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        max_concurrent: int = 16,
        return_errors: bool = False,
        store: "Store | None" = None,
        on_result: OnResult | None = None,
    ) -> list[Result]:
        """Run once for each row and wait; see `amap`."""
        runs = self._rows(rows, store)
        work = partial(run_rows, runs, max_concurrent, return_errors, on_result)
        return wait(work, "map", "graph.amap", lambda: [run.result for run in runs])

    async def amap(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        max_concurrent: int = 16,
        return_errors: bool = False,
        store: "Store | None" = None,
        on_result: OnResult | None = None,
    ) -> list[Result]:
        """Run once for each row, concurrently on the same models; return results in the order of the rows.

        Checks all rows before the first run. A failed row does not stop the others: with `return_errors` its result
        has the error; otherwise RunError is raised at the end with all results as its `result`. A `store` records each
        row as a separate run when it starts. `on_result` is called with a RowResult (index, result, done, total) as
        each row ends, for progress or to save results early.
        """
        return await run_rows(await self._checked_rows(rows, store), max_concurrent, return_errors, on_result)

    def stream_map(
        self, rows: Iterable[Mapping[str, Any]], *, max_concurrent: int = 16, store: "Store | None" = None
    ) -> Stream[RowResult]:
        """Run once for each row: an async iterator of RowResults as rows end, including failed ones.

        The first read checks all rows and starts them: it raises InputError, as awaiting `amap` does. Leaving the loop
        cancels unfinished rows.
        """
        return stream_rows(partial(self._checked_rows, rows, store), max_concurrent)

    # models

    def open(self) -> Self:
        """Load all models now rather than with the first run."""
        self.validate()._agents_now()  # imports torch; Ctrl-C stops that at once only outside an event loop
        wait(self.aopen, "open", "graph.aopen", lambda: None)
        return self

    async def aopen(self) -> Self:
        """Load all models now rather than with the first run."""
        await self.awire()
        return self

    async def awire(self) -> Wiring:
        """Load all models; return the open agents and decided edges, for tools that inspect runs."""
        return await self.wire_for(self.validate().spec)

    async def wire_for(self, spec: GraphSpec) -> Wiring:
        """Load all models and decide the edges for a run of this recipe, once until `close` or a change.

        Raises RunError if the graph has another recipe by now.
        """
        self.validate()
        assert self._planned is not None
        current, order = self._planned
        if current is not spec and current != spec:
            raise RunError("the graph was changed before this run began; run it again")
        agents = self._agents_now()
        return await self._wiring.get(agents, partial(self._decide, current, order, agents))

    def close(self) -> None:
        """Unload the models, also for copies made by `with_channels`; a later run reloads them."""
        for remote in self._clusters.take():
            remote.close()
        self._clusters.disconnect()
        if any(agents.is_loaded for agents in self._agent_sets):
            wait(self.aclose, "close", "graph.aclose", lambda: None)

    async def aclose(self) -> None:
        """Unload the models, also for copies made by `with_channels`; a later run reloads them."""
        for remote in self._clusters.take():
            await remote.aclose()
        self._clusters.disconnect()
        for agents in self._agent_sets:
            await agents.close()
            if agents in self._replaced:
                self._replaced.remove(agents)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await self.aopen()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _new_run(
        self, given: dict[str, Any], store: "Store | None", session: str | None = None, listener: Listener | None = None
    ) -> Run:
        """Create a run of checked inputs."""
        spec = self.spec
        listener = watched(spec, given, listener)
        if store is not None:
            return resume.start_run(self, given, store, listener, session)
        for name, agent in spec.agents.items():
            if agent.pauses:
                raise InputError(f"agent {name!r} can't be asked: {UNKEPT}")
        run = Run(spec, given, partial(self.wire_for, spec), listener)
        run.take_loading = self.take_loading
        run.conversation = self.conversation(session)
        run.generate = self._settings or None
        return run

    def _waiting_run(self) -> Run:
        """The run that stands for a stream's until its first event is read."""
        return Run(self.spec, {}, self.awire)

    def take_loading(self) -> Loading:
        """Return the models' loading times that no run has reported yet, and mark them as reported."""
        return self._agent_set.take_loading() if self._agent_set is not None else Loading()

    def conversation(self, session: str | None) -> Session | None:
        """Return the session of this name. Raises InputError if no agent has a memory."""
        spec = self.spec
        if session is None:
            return None
        if not remembers(spec, self._folder):
            raise InputError(f"no agent of {spec.name!r} remembers a session; give one of them `memory: true`")
        return Session(session, spec.name)

    async def _checked_run(
        self,
        check: Callable[[], dict[str, Any]],
        store: "Store | None",
        session: str | None,
        listener: Listener | None = None,
    ) -> Run:
        """Create a run once its inputs are checked, without blocking the event loop."""
        self.validate()
        given = await run_checks(check)
        if store is None:
            return self._new_run(given, None, session, listener)
        return await anyio.to_thread.run_sync(self._new_run, given, store, session, listener)  # reads and hashes files

    async def _checked_rows(self, rows: Iterable[Mapping[str, Any]], store: "Store | None") -> list[Run]:
        """The same for each row, all of them checked first."""
        self.validate()
        given = await run_checks(partial(each_row, list(rows), self._check_row))
        create = partial(each_row, given, partial(self._new_run, store=store))
        return create() if store is None else await anyio.to_thread.run_sync(create)

    def _rows(self, rows: Iterable[Mapping[str, Any]], store: "Store | None") -> list[Run]:
        return each_row(rows, lambda row: self._new_run(self._check_row(row), store))

    async def _decide(self, spec: GraphSpec, order: Plan, agents: AgentSet) -> Wiring:
        wiring = await open_and_wire(spec, order, agents, self._folder)
        if self.strict and wiring.warnings:
            raise RecipeError([Problem(str(warning)) for warning in wiring.warnings])
        return wiring

    @property
    def _agent_sets(self) -> list[AgentSet]:
        return [*self._replaced, *([self._agent_set] if self._agent_set is not None else [])]

    def _agents_now(self) -> AgentSet:
        """Return the agents of the current recipe, created once."""
        with _creating:
            if self._agent_set is None:
                may = self.permissions
                self._agent_set = AgentSet(
                    create_agents(
                        self.spec, self._folder, self._create, self._functions, may.reaches_local, may.allow_paths
                    )
                )
            return self._agent_set

    def _changed(self) -> Self:
        with _creating:
            if self._agent_set is not None:
                self._replaced.append(self._agent_set)  # its models may be loaded; `close` frees them
            self._agent_set, self._wiring = None, SharedWiring()
        return self
