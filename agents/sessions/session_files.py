"""Store conversations in the data folder: one folder each, with text in JSON and caches beside it.

The text is authoritative. It is replaced atomically and names the caches that belong to it.
"""

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cachegraph.common.paths import lasting
from cachegraph.engine.catalogue.store import file_errors, folder_bytes
from cachegraph.errors import ConfigError, InputError

__all__ = [
    "AgentRecord",
    "Exchange",
    "KeptCache",
    "SessionRecord",
    "caches_of",
    "copy_session",
    "discard",
    "read",
    "remove",
    "session_sizes",
    "sessions",
    "sweep",
    "taken",
    "write",
]

TEXT = "session.json"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class Exchange(BaseModel):
    """One turn of an agent: the messages it received, except the system message, and its reply."""

    messages: list[tuple[str, str]]  # role, content
    reply: str
    at: str = Field(default_factory=lambda: _now())
    turn: str | None = None  # ids of a stored run and its turn, so that a resumed run adds it only once


class KeptCache(BaseModel):
    """A file of KV and the hash of its bytes; the file states model, dtype and tokens."""

    file: str
    sha256: str


class AgentRecord(BaseModel):
    """What one agent remembers. The first `left_out` exchanges are no longer in its prompts."""

    exchanges: list[Exchange] = []
    left_out: int = 0
    cache: KeptCache | None = None


class SessionRecord(BaseModel):
    """A whole conversation."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    session: str
    graph: str
    created: str = Field(default_factory=lambda: _now())
    updated: str = Field(default_factory=lambda: _now())
    agents: dict[str, AgentRecord] = {}


def place(name: str) -> Path:
    """The folder of a session. Raises InputError for an invalid name."""
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} can't name a session; take at most 100 letters, digits, '.', '_' and '-'")
    return _root() / name


def sessions() -> list[str]:
    """List the names of all sessions."""
    root = _root()
    return sorted(path.name for path in root.iterdir() if NAME.fullmatch(path.name)) if root.is_dir() else []


def read(name: str) -> SessionRecord | None:
    """Read a session; None if it does not exist. Raises InputError if it can't be read."""
    file = place(name) / TEXT
    try:
        return SessionRecord.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        why = (
            error.strerror
            if isinstance(error, OSError)
            else f"it is damaged, or from a newer version ({_first(error)})"
        )
        raise InputError(
            f"the session {name!r} can't be read: {why}; remove it with `cachegraph sessions rm {name}`"
        ) from error


def write(record: SessionRecord) -> None:
    """Replace a session's text, and delete the caches that it no longer names."""
    folder = place(record.session)
    record.updated = _now()
    with file_errors(folder):
        part = folder / f".{TEXT}.part"
        with open(part, "w", encoding="utf-8") as file:
            file.write(record.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / TEXT)
        named = {agent.cache.file for agent in record.agents.values() if agent.cache is not None}
        for path in folder.glob("*.safetensors"):
            if path.name not in named:
                path.unlink(missing_ok=True)


def caches_of(name: str) -> int:
    """The bytes of a session's caches."""
    return sum(stat.st_size for stat, _ in _with_stat(place(name).glob("*.safetensors")))


def remove(name: str) -> int:
    """Delete a session; returns the bytes freed. Raises InputError if it does not exist or a run holds it."""
    folder = place(name)
    if not folder.is_dir():
        raise InputError(f"there is no session {name!r}; `cachegraph sessions list` shows them")
    with taken(name), file_errors(folder):
        freed = folder_bytes(folder)
        shutil.rmtree(folder)
    return freed


def discard(name: str) -> int:
    """Delete a session whose name nobody uses again, together with its lock file; see `remove`."""
    freed = remove(name)
    with suppress(OSError):
        (_root() / f".lock-{name}").unlink()
    return freed


def session_sizes(prefix: str) -> list[tuple[str, float, int]]:
    """List the sessions whose names have a prefix: name, time of the last change, bytes."""
    found = []
    for name in sessions():
        if name.startswith(prefix):
            with suppress(OSError):  # deleted meanwhile
                folder = place(name)
                text = folder / TEXT
                changed = (text if text.exists() else folder).stat().st_mtime
                found.append((name, changed, folder_bytes(folder)))
    return found


def copy_session(name: str, other: str) -> bool:
    """Copy a session under another name; False if it does not exist.

    Raises InputError if a run holds either of them.
    """
    if not place(name).is_dir():  # without a lock, which would leave a file for every name that is asked for
        return False
    with taken(name) as folder:
        record = read(name)
        if record is None:
            return False
        with taken(other) as target:
            for agent in record.agents.values():
                if agent.cache is not None:
                    with file_errors(target), suppress(FileNotFoundError):  # swept meanwhile
                        shutil.copy2(folder / agent.cache.file, target / agent.cache.file)
            write(record.model_copy(update={"session": other}))
    return True


@contextmanager
def taken(name: str) -> Iterator[Path]:
    """Hold a session's lock, exclusive over all processes. Raises InputError if another run holds it."""
    folder = place(name)
    with file_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".lock-{name}", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"the session {name!r} is in use by another run; wait for it, or take another session"
            ) from None
    try:
        with file_errors(folder):
            folder.mkdir(exist_ok=True, mode=0o700)
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()  # fails unless empty
        lock.release()


def sweep() -> None:
    """Delete old caches of all sessions, and the oldest beyond the size limit. Text is kept."""
    days = _limit("CACHEGRAPH_SESSIONS_DAYS", 30.0)
    room = _limit("CACHEGRAPH_SESSIONS_GB", 2.0) * 1e9
    files = sorted(_with_stat(_root().glob("*/*.safetensors")), key=lambda file: -file[0].st_mtime)
    for stat, path in files:
        room -= stat.st_size
        if room < 0 or time.time() - stat.st_mtime > days * 86_400:
            path.unlink(missing_ok=True)


def _with_stat(paths: Iterable[Path]) -> Iterator[tuple[os.stat_result, Path]]:
    """Yield each file with its stat, without files that another run deletes meanwhile."""
    for path in paths:
        with suppress(FileNotFoundError):
            yield path.stat(), path


def _limit(variable: str, usual: float) -> float:
    said = os.environ.get(variable)
    try:
        value = usual if said is None else float(said)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise ConfigError(f"the environment variable {variable!r} must be a number of 0 or more, got {said!r}")
    return value


def _root() -> Path:
    return lasting("sessions", _idle)


@contextmanager
def _idle(root: Path) -> Iterator[bool]:
    """Yield whether no run holds a session of this folder; none can start while it is moved."""
    with ExitStack() as held:
        try:
            for file in root.glob(".lock-*"):
                held.enter_context(FileLock(file, thread_local=False).acquire(timeout=0))
        except Timeout:
            yield False
        else:
            yield True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
