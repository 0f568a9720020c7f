"""The graph as Python sees it: built in code or read from a recipe, run once or a thousand times.

Recipe and object are one thing: `spec` is the recipe's value, and everything else follows from it.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

import anyio

from cachegraph.agents.create import Create, create_agent
from cachegraph.agents.functions.import_function import Function, name_of
from cachegraph.agents.schema_threads import run_checks
from cachegraph.agents.sessions.session import Session
from cachegraph.channels.spec import Channel
from cachegraph.common.atomic_write import write_atomically
from cachegraph.errors import ConfigError, InputError, Problem, RecipeError

from .builder import SpecBuilder
from .plan.plan import Plan, plan
from .plan.recipe_warnings import expected_warnings
from .plan.wiring import Wiring
from .recipe.check import check_spec
from .recipe.inputs import check_inputs
from .recipe.load import check_included, dump_recipe, load_recipe, parse_recipe, remembers
from .recipe.own_permissions import own_permissions
from .recipe.raw_spec import Allowed, Permissions
from .recipe.spec import GraphSpec
from .run.agent_set import Cast
from .run.batch import OnResult, RowResult, each_row, run_rows, stream_rows
from .run.create_agents import create_agents
from .run.result import UNKEPT, Loading, Result
from .run.run import Listener, Run
from .run.stream import RunStream, Stream
from .run.subgraph import open_and_wire
from .run.sync import wait
from .run_warning import RunWarning
from .store import resume
from .tracing.enabled import watched

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Graph"]

F = TypeVar("F", bound=Function)
Inputs = Mapping[str, Any] | None


class Graph:
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
        self._builder = SpecBuilder(spec, parts)
        self._folder = Path(folder)
        self._create = create
        self._functions: dict[str, Function] = {}
        self._cast: Cast | None = None
        self._retired: list[Cast] = []
        self._wired: tuple[Cast, int, Wiring] | None = None
        self._permissions: Permissions | None = None  # None: built by the caller's own code
        self._file: Path | None = None  # the recipe's, if it was read from one
        self.strict = False  # a warning of the recipe is an error: nothing runs then
        self._checked: GraphSpec | None = None
        self._planned: tuple[GraphSpec, Plan] | None = None

    @classmethod
    def from_yaml(
        cls,
        path: str | os.PathLike[str],
        *,
        allow_env: Collection[str] = (),
        allow_paths: bool = False,
        allow_code: bool = False,
        allow_local: bool = False,
        known_models: Collection[str] | None = None,
        create: Create = create_agent,
    ) -> Self:
        """The graph of a recipe file. Raises RecipeError with every problem and its place.

        A recipe may be a stranger's: it reaches environment variables, files outside its folder and endpoints in this
        machine's networks, and names functions and programs to run, only as allowed.
        `known_models` are a catalogue's names: with them a misspelt one is a problem with its place, too; without, it
        shows when the models are opened.
        """
        path = Path(path)
        spec = load_recipe(
            path,
            allow_env=allow_env,
            allow_paths=allow_paths,
            allow_code=allow_code,
            allow_local=allow_local,
            known_models=known_models,
        )
        permissions = Permissions.of(
            path.parent,
            allow_env=allow_env,
            allow_paths=allow_paths,
            allow_code=allow_code,
            allow_local=allow_local,
        )
        graph = cls._loaded(spec, create, permissions)
        graph._file = path
        return graph

    @classmethod
    def from_yaml_text(
        cls,
        text: str,
        folder: str | os.PathLike[str] = ".",
        *,
        create: Create = create_agent,
        **allowed: Unpack[Allowed],
    ) -> Self:
        """The graph of a recipe's text; its relative paths start at `folder`. See `from_yaml`."""
        spec = parse_recipe(text, folder=Path(folder), **allowed)
        return cls._loaded(spec, create, Permissions.of(Path(folder), **allowed))

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        folder: str | os.PathLike[str] = ".",
        *,
        create: Create = create_agent,
        **allowed: Unpack[Allowed],
    ) -> Self:
        """The graph of a recipe's data, for example from JSON. See `from_yaml`."""
        graph = cls(folder=folder, create=create)
        graph._builder = SpecBuilder(None, data)
        graph._permissions = Permissions.of(Path(folder), **allowed)
        return graph.validate()

    @classmethod
    def _loaded(cls, spec: GraphSpec, create: Create, permissions: Permissions) -> Self:
        graph = cls(spec, folder=permissions.folder, create=create)
        graph._permissions = permissions
        graph._checked = spec
        return graph

    # building

    def add_input(self, name: str, description: str = "", default: Any = None, **options: Any) -> Self:
        """Declare a value that the caller gives; without a default it is required. Options: `type`, `schema`."""
        self._builder.add_input(name, {"description": description, "default": default, **options})
        return self._changed()

    def add_agent(self, name: str, **entry: Any) -> Self:
        """Add an agent with what the recipe says of one: `model`, `prompt`, `system`, `generate`, `timeout`, ..."""
        self._builder.add_agent(name, entry)
        return self._changed()

    @overload
    def function(self, function: F, /, *, name: str | None = None, timeout: float | None = None) -> F: ...

    @overload
    def function(self, /, *, name: str | None = None, timeout: float | None = None) -> Callable[[F], F]: ...

    def function(self, function: Any = None, /, *, name: str | None = None, timeout: float | None = None) -> Any:
        """Add a Python function as an agent: `@graph.function`. It gets inputs and what agents upstream said, by name.

        It may be async. What it returns becomes text, or data with its JSON as text. Gives the function back.
        """
        if function is None:
            return partial(self.function, name=name, timeout=timeout)
        agent = name or function.__name__
        self._builder.add_agent(agent, {"function": name_of(function), "timeout": timeout})
        self._functions[agent] = function
        self._changed()
        return function

    def add_tools(self, name: str, **options: Any) -> Self:
        """Add a tool server: `command=[...]`, or `url=...`, and the recipe's other options."""
        self._builder.add_tools(name, options)
        return self._changed()

    def add_edge(self, sender: str, receiver: str, channel: Channel = "text", **options: Any) -> Self:
        """Add an edge; a cache edge takes the recipe's options (`fuser`, `fallback`, `align`, ...)."""
        self._builder.add_edge({"from": sender, "to": receiver, "channel": channel, **options})
        return self._changed()

    @property
    def output(self) -> str:
        """The agent whose reply is the graph's."""
        return self.spec.output

    @output.setter
    def output(self, name: str | Sequence[str] | Mapping[str, str]) -> None:
        self._builder.set_output(name)
        self._changed()

    @property
    def spec(self) -> GraphSpec:
        """This graph as a recipe's value. Raises RecipeError if it is not complete."""
        return self._builder.spec

    def validate(self) -> Self:
        """Check everything that can be checked without loading a model. Raises RecipeError with every problem."""
        spec = self.spec
        if self._checked is not spec:
            check_spec(spec, self.permissions)
            check_included(spec, self.permissions, self._folder)
            self._checked = spec
        if self._planned is None or self._planned[0] is not spec:
            self._planned = (spec, plan(spec))
        return self

    def warnings(self) -> list[RunWarning]:
        """What of the recipe reaches nobody over its channels, as far as that is known before a model is loaded.

        Raises RecipeError where no output would hear any input. `Result.warnings` holds what a run found.
        """
        warnings, cut = expected_warnings(self.validate().spec, self._folder)
        if cut is not None:
            raise RecipeError(cut)
        return warnings

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """This graph as a recipe; also written to `path` if one is given, whole or not at all."""
        for agent, function in self._functions.items():
            if "<" in name_of(function) or function.__module__ == "__main__":
                raise RecipeError(
                    f"the function of agent {agent!r} can't be named in a recipe; define it at the top of a module"
                )
        text = dump_recipe(self.validate().spec)
        if path is not None:
            try:
                write_atomically(Path(path), text)
            except OSError as error:
                raise ConfigError(f"the recipe can't be written to {str(path)!r}: {error.strerror or error}") from error
        return text

    def with_channels(self, channel: Channel | Mapping[tuple[str, str], Channel]) -> Self:
        """A copy in which every edge has this channel, or only the edges that a mapping names.

        Edges of recipes that this one includes too; a mapping names them by ("team/expert", "team/answerer").
        The copy shares the loaded models. What a cache edge was told (`fuser`, `fallback`, ...) is remembered while it
        is a text edge, so that swapping there and back changes nothing.
        """
        copy = type(self)(folder=self._folder, create=self._create)
        copy._builder = self.validate()._builder.with_channels(channel)
        copy._permissions = self._permissions
        copy._file, copy.strict = self._file, self.strict
        copy._functions = self._functions
        copy._cast = self._agents()
        return copy.validate()

    def with_spec(self, spec: GraphSpec) -> Self:
        """A graph of another recipe in the same folder, with the same permissions; its models are its own to close."""
        other = type(self)(spec, folder=self._folder, create=self._create)
        other._permissions = self._permissions
        other._functions = self._functions
        other.strict = self.strict
        return other

    @property
    def folder(self) -> Path:
        """What the recipe's relative paths start from."""
        return self._folder

    @property
    def file(self) -> Path | None:
        """The recipe's file, if the graph was read from one."""
        return self._file

    @property
    def permissions(self) -> Permissions:
        """What the recipe may reach."""
        return replace(self._permissions or own_permissions(self.spec), registered=frozenset(self._functions))

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
        return resume.graph_of(cls, run, store, create)

    def resume(
        self, run: str, *, answer: str | None = None, turn: str | None = None, store: "Store | None" = None
    ) -> Result:
        """Go on with a run of this graph where it stood, and wait: turns that have finished are not taken again.

        `run` is its id or the beginning of it; `answer` is what a person says to a paused run, and `turn` to whose
        question where there are several. Raises InputError for a run that has finished, that another process is at work
        on, or whose recipe is not this graph's (`Graph.from_run` gives the one it has).
        """
        execution = resume.resumed(self, run, store, answer, turn)
        return wait(execution.execute, "resume", "graph.aresume", lambda: execution.result)

    async def aresume(
        self, run: str, *, answer: str | None = None, turn: str | None = None, store: "Store | None" = None
    ) -> Result:
        """Go on with a run of this graph, under asyncio or trio; see `resume`."""
        return await (await anyio.to_thread.run_sync(resume.resumed, self, run, store, answer, turn)).execute()

    def stream_resumed(
        self, run: str, *, answer: str | None = None, turn: str | None = None, store: "Store | None" = None
    ) -> RunStream:
        """Go on with a run of this graph and watch; see `resume` and `stream`. What was recalled is told again."""
        return RunStream(lambda listener: resume.resumed(self, run, store, answer, turn, listener))

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
        self.validate()._agents()  # imports torch, which Ctrl-C ends at once only outside an event loop
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
        if any(cast.is_open for cast in self._casts):
            wait(self.aclose, "close", "graph.aclose", lambda: None)

    async def aclose(self) -> None:
        """Let go of the models, also for copies made by `with_channels`; a later run loads them again."""
        for cast in self._casts:
            await cast.close()
        self._retired.clear()

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

    def __repr__(self) -> str:
        return f"<Graph {self._builder.name!r}: {self._builder.size}>"

    def check_inputs(self, inputs: Inputs = None, /, **named: Any) -> dict[str, Any]:
        """The inputs as a run would take them, with defaults filled in. Raises InputError; loads nothing."""
        return check_inputs(self.validate().spec.inputs, inputs, named)

    def _new_run(
        self, given: dict[str, Any], store: "Store | None", session: str | None = None, listener: Listener | None = None
    ) -> Run:
        """A run of inputs that have been checked."""
        spec = self.spec
        listener = watched(spec, given, listener)
        if store is not None:
            return resume.begun(self, given, store, listener, session)
        for name, agent in spec.agents.items():
            if agent.pauses:
                raise InputError(f"agent {name!r} can't be asked: {UNKEPT}")
        run = Run(spec, given, self._prepare, listener)
        run.take_loading = self.take_loading
        run.conversation = self.conversation(session)
        return run

    def take_loading(self) -> Loading:
        """What the models took to load since a run has told of it; a run that is prepared tells of it."""
        return self._cast.take_loading() if self._cast is not None else Loading()

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
        cast = self._agents()
        if self._wired is not None and self._wired[:2] == (cast, cast.epoch):
            return self._wired[2]
        wiring = await open_and_wire(spec, order, cast, self._folder)
        if self.strict and wiring.warnings:
            raise RecipeError([Problem(str(warning)) for warning in wiring.warnings])
        self._wired = (cast, cast.epoch, wiring)
        return wiring

    @property
    def _casts(self) -> list[Cast]:
        return [*self._retired, *([self._cast] if self._cast is not None else [])]

    def _agents(self) -> Cast:
        if self._cast is None:
            may = self.permissions
            self._cast = Cast(
                create_agents(
                    self.spec, self._folder, self._create, self._functions, may.reaches_local, may.allow_paths
                )
            )
        return self._cast

    def _changed(self) -> Self:
        if self._cast is not None:
            self._retired.append(self._cast)  # its models may be loaded; `close` frees them
        self._cast = self._wired = None
        return self
