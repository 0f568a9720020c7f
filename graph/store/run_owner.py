"""Which process a run belongs to.

A row with a heartbeat rather than a lock of the operating system, because it works across machines that share a
PostgreSQL store too. On one machine a dead owner is known at once by its process id; from another machine, by its
silence. Whoever takes a run over changes its token, and a former owner that wakes up can no longer write.
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

__all__ = ["BEAT", "is_alive", "me", "take"]

BEAT = 5.0  # seconds between two signs of life
SILENCE = 60.0  # without one for so long, an owner on another machine is dead
ADJUSTED = 5.0  # by so many seconds a machine's clock may be set meanwhile


class _Owner(NamedTuple):
    host: str
    pid: int
    since: float


_owner = TypeAdapter(_Owner)


def me() -> str:
    """This process, told apart from a later one with the same number."""
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": _since(os.getpid())})


def is_alive(owner: str | None, heartbeat: float | None) -> bool:
    """Whether the process that a run belongs to may still be at work."""
    who = _read(owner)
    if who is None:
        return False
    if who.host == socket.gethostname():
        return abs(_since(who.pid) - who.since) < ADJUSTED
    return time() - (heartbeat if isinstance(heartbeat, float) else 0.0) < SILENCE


def take(connection: Connection, run: str, token: str) -> Any:
    """Make a run this process's own; gives its row. Raises InputError while another one is at it."""
    row = connection.execute(select(runs).where(runs.c.id == run).with_for_update()).one()
    if is_alive(row.owner, row.heartbeat):
        who = _read(row.owner)
        where = f" in process {who.pid} on {who.host!r}" if who is not None else ""
        raise InputError(f"run {run!r} is at work{where}; wait for it, or end that process")
    values = {"owner": me(), "token": token, "heartbeat": time(), "status": "running"}
    connection.execute(update(runs).where(runs.c.id == run).values(values))
    return row


def _read(owner: object) -> _Owner | None:
    """The owner that a row names; None where it names none, or is damaged: then nobody can be at work on the run."""
    try:
        return _owner.validate_json(owner) if isinstance(owner, str) else None
    except ValidationError:
        return None


def _since(pid: int) -> float:
    """When a process began; 0 where there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):  # the latter where the number can't be a process's
        return 0.0
