"""The declared graph: loading, building, checking, writing. Runs nothing."""

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
from .recipe.inputs import check_inputs
from .recipe.load import check_included, dump_recipe, load_recipe, parse_recipe
from .recipe.own_permissions import own_permissions
from .recipe.raw_spec import Allowed, Permissions
from .recipe.spec import GraphSpec
from .run_warning import RunWarning

__all__ = ["GraphDefinition", "Inputs"]

F = TypeVar("F", bound=Function)
Inputs = Mapping[str, Any] | None


class GraphDefinition:
    """A recipe as an object: `spec` is the recipe's value, and everything else follows from it."""

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
        self._permissions: Permissions | None = None  # None: the caller's own code built the graph
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

    def check_inputs(self, inputs: Inputs = None, /, **named: Any) -> dict[str, Any]:
        """The inputs as a run would take them, with defaults filled in. Raises InputError; loads nothing."""
        return check_inputs(self.validate().spec.inputs, inputs, named)

    def _changed(self) -> Self:
        """Called after every change of the recipe."""
        return self

    def __repr__(self) -> str:
        return f"<Graph {self._builder.name!r}: {self._builder.size}>"
