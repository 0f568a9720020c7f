"""Rows of the store as typed values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

from cachegraph import __version__

from ..run.turn_log import RecordedTurn
from .damage import Check, all_of, by_name, either, fields, is_number, is_text, is_time
from .run_owner import is_alive
from .turn_checks import RECORDED

__all__ = [
    "Outcome",
    "RunInfo",
    "Setting",
    "StoredRun",
    "StoredTurn",
    "Unfinished",
    "installed",
    "read_info",
    "read_turn",
    "status_of",
]


@dataclass(frozen=True)
class Setting:
    """Inputs and settings with which a run began."""

    inputs: Mapping[str, Any]
    folder: str  # base of the recipe's relative paths
    file: str | None = None  # the recipe's file
    digest: str | None = None  # of that file when the run began
    included: Mapping[str, str | None] = field(default_factory=dict)  # included recipes and their digests
    allow_env: Sequence[str] = ()
    allow_paths: bool = True
    allow_code: bool = False
    allow_local: bool = False
    session: str | None = None  # the conversation that the run continues
    versions: Mapping[str, str] = field(default_factory=dict)
    generate: Mapping[str, Any] | None = None  # GenerateSpec fields that override those of the outputs

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Setting":
        """Raises ValueError or TypeError where the text is damaged."""
        return cls(**fields(text, SETTING))


@dataclass(frozen=True)
class Unfinished:
    """An agent's turn that has not finished."""

    status: str  # an AgentResult status: failed, paused, cancelled
    error: str | None = None
    prompt: str | None = None  # a failed agent's prompt, or a paused one's question


@dataclass(frozen=True)
class Outcome:
    """How the latest attempt of a run ended.

    Has no `error` and nothing `unfinished` while the run is at work, and after its process died.

    `starts` counts the attempts since the last one that ended or finished a turn. It is 0 once an attempt has ended, so
    only deaths of the process make it grow.
    """

    error: str | None = None
    unfinished: Mapping[str, Unfinished] = field(default_factory=dict)  # by turn
    starts: int = 0
    turns: int = 0  # finished when the latest attempt started

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        """Raises ValueError or TypeError where the text is damaged."""
        plain = fields(text, OUTCOME)
        unfinished = {turn: Unfinished(**entry) for turn, entry in plain.get("unfinished", {}).items()}
        return cls(plain.get("error"), unfinished, plain.get("starts", 0), plain.get("turns", 0))

    def restarted(self, turns: int) -> "Outcome":
        """Return the outcome of a new attempt that knows this number of finished turns."""
        return Outcome(starts=self.starts + 1 if turns <= self.turns else 1, turns=turns)


@dataclass(frozen=True)
class RunInfo:
    """A run as listed. `interrupted`: its process died before the run ended. `damaged`: it is unreadable."""

    id: str
    graph: str
    status: str
    created: float  # seconds since 1970
    seconds: float  # run time, summed over all attempts
    turns: int  # finished turns


@dataclass(frozen=True)
class StoredTurn:
    """A finished turn."""

    turn: str
    recorded_at: float
    recorded: RecordedTurn


@dataclass(frozen=True)
class StoredRun:
    """A run with all its turns."""

    id: str
    graph: str
    status: str
    created: float
    seconds: float
    recipe: str
    setting: Setting
    outcome: Outcome
    turns: Sequence[StoredTurn]  # in order of finishing

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for `json.dumps`."""
        return asdict(self)


def read_info(row: Any) -> RunInfo:
    """Convert a row for a list; lists an unreadable run as damaged, so that it can be removed."""
    readable = is_text(row.id) and is_text(row.graph) and is_text(row.status)
    if readable and is_time(row.created) and is_number(row.seconds):
        return RunInfo(row.id, row.graph, status_of(row), row.created, row.seconds, row.finished_turns)
    return RunInfo(str(row.id), str(row.graph), "damaged", 0.0, 0.0, row.finished_turns)


def status_of(row: Any) -> str:
    """Return a run's status: `interrupted` if its process died."""
    interrupted = row.status == "running" and not is_alive(row.owner, row.heartbeat)
    return "interrupted" if interrupted else str(row.status)


def read_turn(row: Any) -> StoredTurn:
    """Convert a turn's row. Raises ValueError or TypeError if the row is damaged."""
    if not (is_text(row.turn) and is_time(row.recorded)):
        raise ValueError(f"its turn {row.turn!r} is wrong")
    return StoredTurn(row.turn, row.recorded, RecordedTurn(**fields(row.body, RECORDED)))


_texts = by_name(either(str, None))
SETTING: Mapping[str, Check] = {
    "inputs": either(dict),
    "folder": is_text,
    "file": either(str, None),
    "digest": either(str, None),
    "included": _texts,
    "allow_env": all_of(is_text),
    "allow_paths": either(bool),
    "allow_code": either(bool),
    "allow_local": either(bool),
    "session": either(str, None),
    "versions": by_name(is_text),
    "generate": either(dict, None),
}
OUTCOME: Mapping[str, Check] = {
    "error": either(str, None),
    "unfinished": by_name(_texts),
    "starts": is_number,
    "turns": is_number,
}


@cache
def installed() -> Mapping[str, str]:
    """Return the package versions that affect a run's results."""
    found = {"cachegraph": __version__, "python": python_version()}
    for package in ("torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
