"""The Graph class."""

import os
from collections.abc import Iterable, Mapping
from copy import copy
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from cachegraph.agents.create import Create, create_agent
from cachegraph.agents.schema_threads import run_checks
from cachegraph.agents.sessions.session import Session
from cachegraph.channels.spec import Channel
from cachegraph.errors import InputError, Problem, RecipeError

from .definition import GraphDefinition, Inputs
from .plan.wiring import Wiring
from .recipe.load import remembers
from .recipe.spec import GraphSpec
from .run.agent_set import AgentSet
from .run.batch import OnResult, RowResult, each_row, run_rows, stream_rows
from .run.create_agents import create_agents
from .run.result import UNKEPT, Loading, Result
from .run.run import Listener, Run
from .run.settings import check_settings
from .run.stream import RunStream, Stream
from .run.subgraph import open_and_wire
from .run.sync import wait
from .store import resume
from .tracing.enabled import watched

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Graph"]


class Graph(GraphDefinition):
    """A graph of agents.

    Give it a whole `spec`, or its parts as keywords, or build it with `add_agent` and `add_edge`. `folder` is what the
    recipe's relative paths start from, and `create` makes the agents (`cachegraph.agents.scripted.scripted` makes some
    that need no model). Models load with the first run, or with `open`, and stay loaded until `close`.
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
        self._replaced: list[AgentSet] = []  # agents of earlier states of this graph, whose models may be loaded
        self._wired: tuple[AgentSet, int, Wiring] | None = None
        self._settings: dict[str, Any] = {}  # fields of a GenerateSpec, changed for the outputs

    def with_channels(self, channel: Channel | Mapping[tuple[str, str], Channel]) -> Self:
        """A copy in which every edge has this channel, or only the edges that a mapping names.

        Edges of recipes that this one includes too; a mapping names them by ("team/expert", "team/answerer").
        The copy shares the loaded models. What a cache edge was told (`fuser`, `fallback`, ...) is remembered while it
        is a text edge, so that swapping there and back changes nothing.
        """
        other = type(self)(folder=self._folder, create=self._create)
        other._builder = self.validate()._builder.with_channels(channel)
        other._permissions = self._permissions
        other._file, other.strict = self._file, self.strict
        other._functions, other._settings = self._functions, self._settings
        other._agent_set = self._agents_now()
        return other.validate()

    def with_settings(self, **settings: Any) -> Self:
        """A copy whose runs decode the outputs with other settings, such as `temperature=0.7` or `max_new_tokens=64`.

        The recipe stays as it is, and the copy shares the loaded models. Raises InputError for a setting that is wrong,
        or that an output can't honour; a `json_schema` is checked, which may take long.
        """
        spec = self.validate().spec
        changed = {**self._settings, **check_settings(spec, self._folder, self.permissions, settings)}
        self._agents_now()  # which the copy shares
        other = copy(self)
        other._builder = self._builder.copy()
        other._replaced = []
        other._settings = changed
        return other

    @property
    def settings(self) -> Mapping[str, Any]:
        """What `with_settings` has changed."""
        return self._settings

    def with_spec(self, spec: GraphSpec) -> Self:
        """A graph of another recipe in the same folder, with the same permissions; its models are its own to close."""
        other = type(self)(spec, folder=self._folder, create=self._create)
        other._permissions = self._permissions
        other._functions = self._functions
        other.strict = self.strict
        return other

    # running

    def run(
        self, inputs: Inputs = None, /, *, store: "Store | None" = None, session: str | None = None, **named: Any
    ) -> Result:
        """Run once and wait. Raises InputError, RunError, or Interrupted (a KeyboardInterrupt) with what finished.

        With a `store` every finished turn is kept there, and `resume` goes on with the run from another process.
        `session` names a conversation: agents with `memory` go on with it.
        """
        run = self._new_run(self.check_inputs(inputs, **named), store, session)
        return wait(run.execute, "run", "graph.arun", lambda: run.result)

    async def arun(
        self, inputs: Inputs = None, /, *, store: "Store | None" = None, session: str | None = None, **named: Any
    ) -> Result:
        """Run once, under asyncio or trio. Raises InputError, or RunError whose `result` holds what finished."""
        given = await run_checks(partial(self.validate().check_inputs, inputs, **named))
        return await self._new_run(given, store, session).execute()

    def stream(
        self, inputs: Inputs = None, /, *, store: "Store | None" = None, session: str | None = None, **named: Any
    ) -> RunStream:
        """Run once and watch: an async iterator of events. Inputs are checked now, the run begins when it is read."""
        return RunStream(lambda told: self._new_run(self.check_inputs(inputs, **named), store, session, told))

    @classmethod
    def from_run(cls, run: str, store: "Store | None" = None, *, create: Create = create_agent) -> Self:
        """The graph of a run in the store, with its recipe, folder and permissions as they were. Raises InputError."""
        return resume.load_graph(cls, run, store, create)

    def resume(
        self, run: str, *, answer: str | None = None, turn: str | None = None, store: "Store | None" = None
    ) -> Result:
        """Go on with a run of this graph where it stood, and wait: turns that have finished are not taken again.

        `run` is its id or the beginning of it; `answer` is what a person says to a paused run, and `turn` to whose
        question where there are several. Raises InputError for a run that has finished, that another process is at work
        on, or whose recipe is not this graph's (`Graph.from_run` gives the one it has).
        """
        execution = resume.resume_run(self, run, store, answer, turn)
        return wait(execution.execute, "resume", "graph.aresume", lambda: execution.result)

    async def aresume(
        self, run: str, *, answer: str | None = None, turn: str | None = None, store: "Store | None" = None
    ) -> Result:
        """Go on with a run of this graph, under asyncio or trio; see `resume`."""
        return await (await anyio.to_thread.run_sync(resume.resume_run, self, run, store, answer, turn)).execute()

    def stream_resumed(
        self, run: str, *, answer: str | None = None, turn: str | None = None, store: "Store | None" = None
    ) -> RunStream:
        """Go on with a run of this graph and watch; see `resume` and `stream`. What was recalled is told again."""
        return RunStream(lambda listener: resume.resume_run(self, run, store, answer, turn, listener))

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
        """Run once for each row, many at a time on the same models; gives the results in the rows' order.

        All rows are checked before the first runs. A row that fails does not stop the others: with `return_errors` its
        result says so, otherwise RunError is raised at the end, and its `result` is the list of all results. In a
        `store` each row is a run of its own, which enters it when it begins. `on_result` is called with a RowResult
        (index, result, done, total) as each row ends: for progress, or to keep results at once.
        """
        given = await run_checks(partial(each_row, list(rows), self.validate().check_inputs))
        runs = each_row(given, partial(self._new_run, store=store))
        return await run_rows(runs, max_concurrent, return_errors, on_result)

    def stream_map(
        self, rows: Iterable[Mapping[str, Any]], *, max_concurrent: int = 16, store: "Store | None" = None
    ) -> Stream[RowResult]:
        """Run once for each row: an async iterator of RowResults, each when it is there, failed ones too.

        Rows are checked now and begin when it is read; leaving the loop cancels what still runs.
        """
        return stream_rows(self._rows(rows, store), max_concurrent)

    # models

    def open(self) -> Self:
        """Load all models now rather than with the first run."""
        self.validate()._agents_now()  # imports torch, which Ctrl-C ends at once only outside an event loop
        wait(self.aopen, "open", "graph.aopen", lambda: None)
        return self

    async def aopen(self) -> Self:
        """Load all models now rather than with the first run."""
        await self.awire()
        return self

    async def awire(self) -> Wiring:
        """Load all models, and give the open agents and decided edges, for tools that look into runs."""
        return await self._prepare()

    def close(self) -> None:
        """Let go of the models, also for copies made by `with_channels`; a later run loads them again."""
        if any(agents.is_open for agents in self._agent_sets):
            wait(self.aclose, "close", "graph.aclose", lambda: None)

    async def aclose(self) -> None:
        """Let go of the models, also for copies made by `with_channels`; a later run loads them again."""
        for agents in self._agent_sets:
            await agents.close()
        self._replaced.clear()

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
        """A run of inputs that have been checked."""
        spec = self.spec
        listener = watched(spec, given, listener)
        if store is not None:
            return resume.start_run(self, given, store, listener, session)
        for name, agent in spec.agents.items():
            if agent.pauses:
                raise InputError(f"agent {name!r} can't be asked: {UNKEPT}")
        run = Run(spec, given, self._prepare, listener)
        run.take_loading = self.take_loading
        run.conversation = self.conversation(session)
        run.generate = self._settings or None
        return run

    def take_loading(self) -> Loading:
        """What the models took to load since a run has told of it; a run that is prepared tells of it."""
        return self._agent_set.take_loading() if self._agent_set is not None else Loading()

    def conversation(self, session: str | None) -> Session | None:
        """The session of this name, for agents that remember. Raises InputError where none does."""
        spec = self.spec
        if session is None:
            return None
        if not remembers(spec, self._folder):
            raise InputError(f"no agent of {spec.name!r} remembers a session; give one of them `memory: true`")
        return Session(session, spec.name)

    def _rows(self, rows: Iterable[Mapping[str, Any]], store: "Store | None") -> list[Run]:
        return each_row(rows, lambda row: self._new_run(self.check_inputs(row), store))

    async def _prepare(self) -> Wiring:
        """Open agents and decided edges; made once, and again only after `close` or a change."""
        self.validate()
        assert self._planned is not None
        spec, order = self._planned
        agents = self._agents_now()
        if self._wired is not None and self._wired[:2] == (agents, agents.epoch):
            return self._wired[2]
        wiring = await open_and_wire(spec, order, agents, self._folder)
        if self.strict and wiring.warnings:
            raise RecipeError([Problem(str(warning)) for warning in wiring.warnings])
        self._wired = (agents, agents.epoch, wiring)
        return wiring

    @property
    def _agent_sets(self) -> list[AgentSet]:
        return [*self._replaced, *([self._agent_set] if self._agent_set is not None else [])]

    def _agents_now(self) -> AgentSet:
        """The agents of the recipe as it is, created once."""
        if self._agent_set is None:
            may = self.permissions
            self._agent_set = AgentSet(
                create_agents(
                    self.spec, self._folder, self._create, self._functions, may.reaches_local, may.allow_paths
                )
            )
        return self._agent_set

    def _changed(self) -> Self:
        if self._agent_set is not None:
            self._replaced.append(self._agent_set)  # its models may be loaded; `close` frees them
        self._agent_set = self._wired = None
        return self
