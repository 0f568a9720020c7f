"""Which process owns a run.

Uses a row with a heartbeat instead of an operating system lock, so that it also works across machines that share a
PostgreSQL store. On the same machine, the process id shows at once that an owner is dead; from another machine, missing
heartbeats show it. A takeover changes the run's token, so that a former owner that wakes up can no longer write.
"""

import json
import os
import socket
from time import time
from typing import Any, NamedTuple

import psutil
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, select, update

from cachegraph.errors import InputError

from .schema import runs

__all__ = ["BEAT", "RunAtWorkError", "is_alive", "me", "take"]

BEAT = 5.0  # seconds between heartbeats
SILENCE = 60.0  # seconds without a heartbeat after which an owner on another machine counts as dead
ADJUSTED = 5.0  # tolerated clock adjustment in seconds


class RunAtWorkError(InputError):
    """Another live process owns the run."""


class _Owner(NamedTuple):
    host: str
    pid: int
    since: float


_owner = TypeAdapter(_Owner)


def me() -> str:
    """Identify this process, distinct from a later one with the same id."""
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": _since(os.getpid())})


def is_alive(owner: str | None, heartbeat: float | None) -> bool:
    """Whether the process that owns a run may still be alive."""
    who = _read(owner)
    if who is None:
        return False
    if who.host == socket.gethostname():
        return abs(_since(who.pid) - who.since) < ADJUSTED
    return time() - (heartbeat if isinstance(heartbeat, float) else 0.0) < SILENCE


def take(connection: Connection, run: str, token: str) -> Any:
    """Make this process the owner of a run and return its row. Raises RunAtWorkError if another one owns it."""
    row = connection.execute(select(runs).where(runs.c.id == run).with_for_update()).one()
    if is_alive(row.owner, row.heartbeat):
        who = _read(row.owner)
        where = f" in process {who.pid} on {who.host!r}" if who is not None else ""
        raise RunAtWorkError(f"run {run!r} is at work{where}; wait for it, or end that process")
    values = {"owner": me(), "token": token, "heartbeat": time(), "status": "running"}
    connection.execute(update(runs).where(runs.c.id == run).values(values))
    return row


def _read(owner: object) -> _Owner | None:
    """Parse a row's owner; None if it has none or is damaged, since then no process can own the run."""
    try:
        return _owner.validate_json(owner) if isinstance(owner, str) else None
    except ValidationError:
        return None


def _since(pid: int) -> float:
    """Return a process's start time; 0 if it doesn't exist."""
    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):  # the latter for a number that is not a valid process id
        return 0.0
