"""The text of a served recipe for clients, in which absolute paths are cut to their last part, and the way back."""

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from cachegraph.agents.spec import AgentSpec
from cachegraph.channels.spec import EdgeSpec, FuserPair
from cachegraph.errors import RecipeError
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.load import read_spec, read_text
from cachegraph.graph.recipe.raw_spec import RawSpec
from cachegraph.graph.recipe.safety import fuser_names
from cachegraph.graph.recipe.spec import GraphSpec

__all__ = ["RecipeSource", "fusers_of"]

MODEL_PATHS = ("source", "chat_template")


@dataclass(frozen=True, eq=False)
class RecipeSource:
    """The source of one served recipe."""

    graph: Graph

    @cached_property
    def text(self) -> str:
        """The recipe's text, as it was served first."""
        text = self._own_text()
        for path, short in sorted(self._shorts.items(), key=lambda item: -len(item[0])):
            place = rf"(?<![\w./~-]){re.escape(path)}(?![\w/-])"
            text = short.join(re.split(place, text))
        return text

    @cached_property
    def sha256(self) -> str | None:
        """The hash of the graph's file; None if it has none, or if the file has changed since it was read."""
        if self.graph.file is None or not self._is_unchanged():
            return None
        with suppress(OSError):
            return hashlib.sha256(self.graph.file.read_bytes()).hexdigest()
        return None

    def same_model(self, key: str, entry: Any) -> bool:
        """Whether this is the recipe's entry of `models` under this key, as it is or as the text shows it."""
        own = self.graph.spec.models.get(key)
        return own is not None and _plain(entry) in (_plain(own), self._shown(own))

    def short(self, name: str) -> str:
        """Return a model's or fuser's name as the text shows it."""
        return self._shorts.get(name, name)

    def restore(self, spec: GraphSpec) -> GraphSpec:
        """Put the recipe's own models and paths back into a spec that was read from the text."""
        agents = {
            name: agent.model_copy(update={"model": self._path(agent.model)}) if isinstance(agent, AgentSpec) else agent
            for name, agent in spec.agents.items()
        }
        edges = tuple(map(self._restore_edge, spec.edges))
        fusers = tuple(map(self._path, spec.fusers))
        update = {"models": self.graph.spec.models, "agents": agents, "edges": edges, "fusers": fusers}
        return spec.model_copy(update=update)

    def _restore_edge(self, edge: EdgeSpec) -> EdgeSpec:
        fuser = getattr(edge, "fuser", None)
        if isinstance(fuser, FuserPair):
            pair = {"fuse": self._path(fuser.fuse), "graft": self._path(fuser.graft)}
            return edge.model_copy(update={"fuser": fuser.model_copy(update=pair)})
        return edge if fuser is None else edge.model_copy(update={"fuser": self._path(fuser)})

    def _path(self, name: str) -> str:
        return next((path for path, short in self._shorts.items() if short == name), name)

    @cached_property
    def _shorts(self) -> dict[str, str]:
        """The absolute paths that the recipe names, and what the text shows for each: its last part if it is free."""
        spec = self.graph.spec
        named = {*fusers_of(spec), *(agent.model for agent in spec.speakers.values())}
        for entry in spec.models.values():
            named |= {entry} if isinstance(entry, str) else {getattr(entry, key, None) or "" for key in MODEL_PATHS}
        found: dict[str, str] = {}
        for path in sorted(filter(_is_absolute, named)):
            last, number = _last_part(path), 1
            while (short := last if number == 1 else f"{last}-{number}") in {*found.values(), *named}:
                number += 1
            found[path] = short
        return found

    def _shown(self, entry: Any) -> Any:
        plain = _plain(entry)
        if isinstance(plain, str):
            return self.short(plain)
        return {key: self.short(value) if key in MODEL_PATHS and value else value for key, value in plain.items()}

    def _own_text(self) -> str:
        """Return the text of the graph's file, or write the graph as YAML if the file has changed since."""
        if self._is_unchanged():
            with suppress(RecipeError, ValueError):
                assert self.graph.file is not None
                return read_text(self.graph.file)
        return self.graph.to_yaml()

    def _is_unchanged(self) -> bool:
        """Whether the graph's file still gives this graph."""
        try:
            return self.graph.file is not None and read_spec(self.graph.file) == self.graph.spec
        except (RecipeError, ValueError):
            return False


def fusers_of(spec: GraphSpec) -> list[str]:
    """List the fusers that a recipe names, on its edges or as defaults."""
    raw = RawSpec.of(spec.model_dump(by_alias=True, exclude_defaults=True))
    return [fuser for _, fuser in fuser_names(raw)]


def _plain(entry: Any) -> Any:
    return entry if isinstance(entry, str) else entry.model_dump()


def _is_absolute(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).drive) or name.startswith("~")


def _last_part(path: str) -> str:
    pure = PureWindowsPath(path) if PureWindowsPath(path).drive else PurePosixPath(path)
    return pure.name or "root"
