"""What the store tells of a run, and how it is written there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

from cachegraph import __version__

from ..journal import Recorded
from .owner import is_alive

__all__ = [
    "Outcome",
    "RunInfo",
    "Setting",
    "StoredRun",
    "StoredTurn",
    "Unfinished",
    "installed",
    "read_turn",
    "status_of",
]


@dataclass(frozen=True)
class Setting:
    """With what a run was begun."""

    inputs: Mapping[str, Any]
    folder: str  # where the recipe's relative paths start
    file: str | None = None  # the recipe's
    digest: str | None = None  # of that file, as it was
    included: Mapping[str, str | None] = field(default_factory=dict)  # the recipes within the recipe, and their digests
    allow_env: Sequence[str] = ()
    allow_paths: bool = True
    allow_code: bool = False
    session: str | None = None  # the conversation that the run goes on with
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Setting":
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Unfinished:
    """An agent's turn that has begun or was to begin and has not finished."""

    status: str  # of an AgentResult: failed, paused, cancelled
    error: str | None = None
    prompt: str | None = None  # what a failed agent was given to read, or what a paused one asks


@dataclass(frozen=True)
class Outcome:
    """How a run ended for now. Empty while it is at work, and after its process was killed."""

    error: str | None = None
    unfinished: Mapping[str, Unfinished] = field(default_factory=dict)  # by turn

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        plain = json.loads(text)
        return cls(plain["error"], {turn: Unfinished(**each) for turn, each in plain["unfinished"].items()})


@dataclass(frozen=True)
class RunInfo:
    """A run as a list shows it. `interrupted`: its process has gone without ending it."""

    id: str
    graph: str
    status: str
    created: float  # seconds since 1970
    seconds: float  # how long it ran, all attempts together
    turns: int  # that have finished


@dataclass(frozen=True)
class StoredTurn:
    """A finished turn."""

    turn: str
    recorded_at: float
    recorded: Recorded


@dataclass(frozen=True)
class StoredRun:
    """A whole run."""

    id: str
    graph: str
    status: str
    created: float
    seconds: float
    recipe: str
    setting: Setting
    outcome: Outcome
    turns: Sequence[StoredTurn]  # in the order in which they finished

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return asdict(self)


def status_of(row: Any) -> str:
    """A run's status; one that nobody is at work on any more was interrupted."""
    interrupted = row.status == "running" and not is_alive(row.owner, row.heartbeat)
    return "interrupted" if interrupted else str(row.status)


def read_turn(row: Any) -> StoredTurn:
    return StoredTurn(row.turn, row.recorded, Recorded(**json.loads(row.body)))


@cache
def installed() -> Mapping[str, str]:
    """The versions that decide what a run computes."""
    found = {"cachegraph": __version__, "python": python_version()}
    for package in ("torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
