"""A recipe's raw data, before type validation."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, TypedDict, Unpack

from .presets import with_presets
from .yaml_positions import Path

__all__ = ["Allowed", "Finding", "Permissions", "RawEdge", "RawSpec"]


@dataclass(frozen=True)
class Finding:
    """A problem at a path of the recipe."""

    message: str
    path: Path
    hint: str = ""
    at_key: bool = False  # points at the path's last key, not its value
    spot: tuple[int, int] | None = None  # line and column inside the text at the path, from 1


class Allowed(TypedDict, total=False):
    """Permissions that a caller may give a recipe; none by default."""

    allow_env: Collection[str]
    allow_paths: bool
    allow_code: bool
    allow_local: bool


@dataclass(frozen=True)
class Permissions:
    """What a recipe may access outside itself, and the names known to the caller."""

    folder: FilePath = field(default_factory=FilePath)  # base of the recipe's relative paths
    allow_env: frozenset[str] = frozenset()
    allow_paths: bool = False
    known_models: frozenset[str] | None = None  # None: the catalogue is unknown, so accept any name
    allow_code: bool = False
    allow_local: bool = False
    registered: frozenset[str] = frozenset()  # agents whose functions the caller registered

    @classmethod
    def of(cls, folder: FilePath, **allowed: Unpack[Allowed]) -> "Permissions":
        """Build the permissions of a recipe in this folder."""
        return cls(
            folder,
            frozenset(allowed.get("allow_env", ())),
            allowed.get("allow_paths", False),
            allow_code=allowed.get("allow_code", False),
            allow_local=allowed.get("allow_local", False),
        )

    @property
    def reaches_local(self) -> bool:
        """Whether the recipe may contact this machine and its networks; code that runs here always can."""
        return self.allow_local or self.allow_code


@dataclass(frozen=True)
class RawEdge:
    """An edge whose sender and receiver are strings."""

    index: int
    sender: str
    receiver: str
    channel: str
    fusers: list[tuple[Path, str]]  # paths below the edge, and the fusers named there
    fallback: str
    when: str | None = None
    until: str | None = None
    leads_back: bool = False  # bounded, so it may close a cycle
    rounds: str = "newest"


@dataclass(frozen=True)
class RawSpec:
    """The well-formed parts of a recipe's data. `whole`: no edge was malformed."""

    agents: dict[str, dict[str, Any]]
    inputs: dict[str, Any]
    models: dict[str, Any]
    edges: list[RawEdge]
    outputs: list[tuple[str, Path]]  # agents' names and their paths
    whole: bool
    evaluated: tuple[str, ...] = ()  # inputs filled from a data set's column
    tools: dict[str, Any] = field(default_factory=dict)
    fusers: tuple[tuple[int, str], ...] = ()  # default fusers with their list indices

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "RawSpec":
        """Keep the well-formed parts; type validation reports the rest."""
        data = with_presets(data)
        agents = {name: agent for name, agent in _mapping(data, "agents").items() if isinstance(agent, dict)}
        raw = data.get("edges", ())
        items = raw if isinstance(raw, tuple | list) else ()
        edges = [edge for index, item in enumerate(items) if (edge := _edge(index, item)) is not None]
        complete = len(edges) == len(items) and isinstance(raw, tuple | list)
        inputs, models = _mapping(data, "inputs"), _mapping(data, "models")
        evaluated = tuple(map(str, _mapping(_mapping(data, "evaluate"), "inputs")))
        tools, outputs = _mapping(data, "tools"), _outputs(data.get("output"))
        return cls(agents, inputs, models, edges, outputs, complete, evaluated, tools, _defaults(data.get("fusers")))


def _outputs(raw: Any) -> list[tuple[str, Path]]:
    if isinstance(raw, str):
        return [(raw, ("output",))]
    if isinstance(raw, dict):
        return [(name, ("output", key)) for key, name in raw.items() if isinstance(name, str)]
    items = enumerate(raw) if isinstance(raw, tuple | list) else ()
    return [(name, ("output", number)) for number, name in items if isinstance(name, str)]


def _mapping(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _edge(index: int, item: Any) -> RawEdge | None:
    if not isinstance(item, dict):
        return None
    sender, receiver = item.get("from"), item.get("to")
    channel, fallback = item.get("channel", "text"), item.get("fallback", "text")
    if not isinstance(sender, str) or not isinstance(receiver, str):
        return None
    when, until = (source if isinstance(source := item.get(key), str) else None for key in ("when", "until"))
    leads_back = item.get("max_rounds") is not None
    fusers, rounds = _fusers(item.get("fuser")), str(item.get("rounds", "newest"))
    return RawEdge(index, sender, receiver, str(channel), fusers, str(fallback), when, until, leads_back, rounds)


def _fusers(value: Any) -> list[tuple[Path, str]]:
    if isinstance(value, dict):
        return [(("fuser", key), name) for key, name in value.items() if isinstance(name, str)]
    return [(("fuser",), value)] if isinstance(value, str) else []


def _defaults(value: Any) -> tuple[tuple[int, str], ...]:
    items = enumerate(value) if isinstance(value, tuple | list) else ()
    return tuple((index, name) for index, name in items if isinstance(name, str))
