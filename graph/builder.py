"""Build a recipe step by step in Python."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cachegraph.agents.kinds import KINDS, kind_of, why_two_kinds
from cachegraph.agents.tools.spec import CommandTools, UrlTools
from cachegraph.channels.spec import CHANNELS, Channel
from cachegraph.common.did_you_mean import suggest
from cachegraph.errors import InputError, Problem, RecipeError

from .recipe.spec import GraphSpec, InputSpec
from .recipe.spec_parts import edge_spec, part_spec, problems_of
from .recipe.swap_channels import CacheOptions, swap_channels
from .recipe.validation_messages import ONE_KIND

__all__ = ["SpecBuilder"]


class SpecBuilder:
    """The parts of a recipe. `spec` validates and returns the whole."""

    def __init__(self, spec: GraphSpec | None, parts: Mapping[str, Any]):
        if spec is not None and parts:
            names = ", ".join(map(repr, parts))
            raise InputError(f"a graph takes a spec or its parts, not both; drop {names} or the spec")
        if spec is not None and not isinstance(spec, GraphSpec):
            kind = type(spec).__name__
            raise InputError(f"a graph's spec is a GraphSpec, not {kind}; see Graph.from_yaml and Graph.from_dict")
        self._spec = spec
        self._parts: dict[str, Any] = {"version": 1, "name": "graph", **parts}
        if spec is not None:
            self._parts = {name: getattr(spec, name) for name in GraphSpec.model_fields}
        self._cache_options: CacheOptions = {}

    @property
    def name(self) -> str:
        return str(self._parts["name"])

    @property
    def size(self) -> str:
        """Numbers of agents and edges, as text."""
        agents, edges = len(self._parts.get("agents") or ()), len(self._parts.get("edges") or ())
        return f"{agents} agent{'s' * (agents != 1)}, {edges} edge{'s' * (edges != 1)}"

    @property
    def spec(self) -> GraphSpec:
        """The whole recipe, cached until a part changes. Raises RecipeError."""
        if self._spec is None:
            agents = self._parts.get("agents")
            for name, entry in agents.items() if isinstance(agents, Mapping) else ():
                self._check_kind(name, entry)
            try:
                self._spec = GraphSpec.model_validate(self._parts)
            except ValidationError as error:
                raise RecipeError(problems_of(error)) from error
        return self._spec

    def copy(self) -> "SpecBuilder":
        """Return an independent copy; it shares `spec` until it changes."""
        other = SpecBuilder(self.spec, {})
        other._cache_options = dict(self._cache_options)
        return other

    def add_input(self, name: str, data: Mapping[str, Any]) -> None:
        self._add("inputs", name, part_spec(InputSpec, data, ("inputs", name)))

    def add_agent(self, name: str, data: Mapping[str, Any]) -> None:
        self._check_kind(name, data)
        kind = kind_of(data)
        self._add("agents", name, part_spec(KINDS[kind], data, ("agents", name, kind)))

    def add_tools(self, name: str, data: Mapping[str, Any]) -> None:
        if "url" in data:
            self._add("tools", name, part_spec(UrlTools, data, ("tools", name, "url")))
        else:
            self._add("tools", name, part_spec(CommandTools, data, ("tools", name, "command")))

    def add_edge(self, data: Mapping[str, Any]) -> None:
        """Add an edge with these keys of a recipe's edge. Raises RecipeError for an unknown channel."""
        if data["channel"] not in CHANNELS:
            raise RecipeError(f"there is no channel {data['channel']!r}{suggest(data['channel'], CHANNELS)}")
        self._set("edges", (*(self._parts.get("edges") or ()), edge_spec(data)))

    def set_output(self, name: Any) -> None:
        self._parts.pop("output", None)
        self._set("answers", name)

    def with_channels(self, channel: Channel | Mapping[tuple[str, str], Channel]) -> "SpecBuilder":
        """Return a copy with other channels. Raises InputError for an unknown edge or channel."""
        options = dict(self._cache_options)
        copy = SpecBuilder(swap_channels(self.spec, channel, options), {})
        copy._cache_options = options
        return copy

    @staticmethod
    def _check_kind(name: str, entry: object) -> None:
        why = why_two_kinds(name, entry) if isinstance(entry, Mapping) else None
        if why is not None:
            raise RecipeError([Problem(why, hint=ONE_KIND)])

    def _add(self, part: str, name: str, value: object) -> None:
        values = self._parts.get(part) or {}
        if name in values:
            raise RecipeError(f"{part} has {name!r} already; choose another name")
        self._set(part, {**values, name: value})

    def _set(self, part: str, value: Any) -> None:
        self._parts[part] = value
        self._spec = None
