"""The declared graph: load, build, check, write. Runs nothing."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack, overload

from cachegraph.agents.create import Create, create_agent
from cachegraph.agents.functions.import_function import Function, name_of
from cachegraph.channels.spec import Channel
from cachegraph.common.atomic_write import write_atomically
from cachegraph.errors import ConfigError, RecipeError

from .builder import SpecBuilder
from .plan.plan import Plan, plan
from .plan.recipe_warnings import expected_warnings
from .recipe.check import check_spec
from .recipe.inputs import by_key_of_row, check_inputs
from .recipe.load import check_included, dump_recipe, load_recipe, parse_recipe
from .recipe.own_permissions import own_permissions
from .recipe.raw_spec import Allowed, Permissions
from .recipe.spec import GraphSpec
from .run_warning import RunWarning

__all__ = ["GraphDefinition", "Inputs"]

F = TypeVar("F", bound=Function)
Inputs = Mapping[str, Any] | None


class GraphDefinition:
    """A recipe as an object; everything derives from its value, `spec`."""

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
        self._permissions: Permissions | None = None  # None: built in Python
        self._file: Path | None = None  # the recipe's file, if any
        self.strict = False  # treat warnings of the recipe as errors
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
        """Load the graph of a recipe file. Raises RecipeError with every problem and its position.

        Recipes are untrusted: only the `allow_*` arguments give one access to environment variables, files outside its
        folder, endpoints in this machine's networks, and functions and programs to run.
        `known_models` are a catalogue's names: with them, misspelt model names are reported with their positions;
        without them, opening the models reports them.
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
        """Load the graph of a recipe's text; relative paths start at `folder`. See `from_yaml`."""
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
        """Build the graph of a recipe's data, for example from JSON. See `from_yaml`."""
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
        """Declare an input; it is required if it has no default. Options: `type`, `schema`."""
        self._builder.add_input(name, {"description": description, "default": default, **options})
        return self._changed()

    def add_agent(self, name: str, **entry: Any) -> Self:
        """Add an agent with a recipe's keys: `model`, `prompt`, `system`, `generate`, `timeout`, ..."""
        self._builder.add_agent(name, entry)
        return self._changed()

    @overload
    def function(self, function: F, /, *, name: str | None = None, timeout: float | None = None) -> F: ...

    @overload
    def function(self, /, *, name: str | None = None, timeout: float | None = None) -> Callable[[F], F]: ...

    def function(self, function: Any = None, /, *, name: str | None = None, timeout: float | None = None) -> Any:
        """Add a Python function as an agent: `@graph.function`. It receives inputs and upstream replies by name.

        It may be async. Its return value becomes text, or data with its JSON as text. Returns the function.
        """
        if function is None:
            return partial(self.function, name=name, timeout=timeout)
        agent = name or function.__name__
        self._builder.add_agent(agent, {"function": name_of(function), "timeout": timeout})
        self._functions[agent] = function
        self._changed()
        return function

    def add_tools(self, name: str, **options: Any) -> Self:
        """Add a tool server: `command=[...]` or `url=...`, and a recipe's other options."""
        self._builder.add_tools(name, options)
        return self._changed()

    def add_edge(self, sender: str, receiver: str, channel: Channel = "text", **options: Any) -> Self:
        """Add an edge; a cache edge takes a recipe's options (`fuser`, `fallback`, `align`, ...)."""
        self._builder.add_edge({"from": sender, "to": receiver, "channel": channel, **options})
        return self._changed()

    @property
    def output(self) -> str:
        """The agent that writes the graph's reply."""
        return self.spec.output

    @output.setter
    def output(self, name: str | Sequence[str] | Mapping[str, str]) -> None:
        self._builder.set_output(name)
        self._changed()

    @property
    def spec(self) -> GraphSpec:
        """The recipe of this graph. Raises RecipeError if it is incomplete."""
        return self._builder.spec

    def validate(self) -> Self:
        """Check the graph as far as possible without loading a model. Raises RecipeError with every problem."""
        spec = self.spec
        if self._checked is not spec:
            check_spec(spec, self.permissions)
            check_included(spec, self.permissions, self._folder)
            self._checked = spec
        if self._planned is None or self._planned[0] is not spec:
            self._planned = (spec, plan(spec))
        return self

    def warnings(self) -> list[RunWarning]:
        """Return warnings of inputs and replies that get lost over the channels, as known before models load.

        Raises RecipeError if no output would hear any input. `Result.warnings` holds the warnings of a run.
        """
        warnings, cut = expected_warnings(self.validate().spec, self._folder)
        if cut is not None:
            raise RecipeError(cut)
        return warnings

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return this graph as a YAML recipe; with `path`, also write it there atomically.

        Raises RecipeError for a function that has no importable name, ConfigError if `path` can't be written.
        """
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

    @property
    def folder(self) -> Path:
        """Base of the recipe's relative paths."""
        return self._folder

    @property
    def file(self) -> Path | None:
        """The recipe file from which the graph was loaded, if any."""
        return self._file

    @property
    def permissions(self) -> Permissions:
        """The recipe's permissions."""
        return replace(self._permissions or own_permissions(self.spec), registered=frozenset(self._functions))

    def check_inputs(self, inputs: Inputs = None, /, **named: Any) -> dict[str, Any]:
        """Return the inputs as a run would take them, with defaults filled in. Raises InputError; loads nothing."""
        return check_inputs(self.validate().spec.inputs, inputs, named)

    def _check_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return check_inputs(self.validate().spec.inputs, row, remedy=by_key_of_row)

    def _changed(self) -> Self:
        """Invalidate cached state after a change of the recipe."""
        return self

    def __repr__(self) -> str:
        return f"<Graph {self._builder.name!r}: {self._builder.size}>"
