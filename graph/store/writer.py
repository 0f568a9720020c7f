"""The thread that commits. Batches concurrent records of several runs into one transaction.

Each statement also checks that this process still owns the run.
"""

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from queue import Empty, SimpleQueue
from time import monotonic, time
from typing import Any

from sqlalchemy import Connection, Dialect, Double, Insert, String, Text, Update, bindparam, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql.compiler import SQLCompiler

from cachegraph.engine.batching.loop_bridge import Mailbox
from cachegraph.errors import RunError

from .database import Database
from .run_owner import BEAT
from .schema import runs, turns

__all__ = ["Writer"]

MOST = 256  # entries per transaction

MINE = (runs.c.id == bindparam("run", type_=String)) & (runs.c.token == bindparam("token", type_=String))
SIGN = update(runs).where(MINE).values(heartbeat=bindparam("now", type_=Double))
# Inserts nothing if this process doesn't own the run; on PostgreSQL this also blocks a concurrent takeover.
ADD = turns.insert().from_select(
    ["run", "turn", "recorded", "body"],
    select(
        runs.c.id,
        bindparam("turn", type_=String),
        bindparam("now", type_=Double),
        bindparam("body", type_=Text),
    )
    .where(MINE)
    .with_for_update(read=True),
)


@dataclass(frozen=True, eq=False)
class _Entry:
    run: str
    turn: str
    body: str
    done: Mailbox[Exception | None]


_Queue = SimpleQueue[_Entry | None]  # None: no more records


class _NotOurs(Exception):
    """Another process has taken over a run."""


class Writer:
    """Commits for all runs of a store that this process owns; its thread lives as long as it owns one."""

    def __init__(self, database: Database):
        self._database = database
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}  # tokens by run
        self._queue: _Queue | None = None
        self._thread: threading.Thread | None = None
        self._signed = monotonic()
        self._process = os.getpid()

    def hold(self, run: str, token: str) -> None:
        """Start sending heartbeats for this run."""
        if self._process != os.getpid():  # a forked process, which owns none of its parent's runs
            self.__init__(self._database)  # type: ignore[misc]
        with self._lock:
            self._held[run] = token
            if self._queue is None:
                self._queue = SimpleQueue()
                name = "cachegraph-store"
                self._thread = threading.Thread(target=self._work, args=(self._queue,), name=name, daemon=True)
                self._thread.start()

    def release(self, run: str) -> None:
        """Stop sending heartbeats for this run."""
        with self._lock:
            self._held.pop(run, None)
            if not self._held and self._queue is not None:
                self._queue.put(None)
                self._queue = None

    def wait(self) -> None:
        """Wait until the thread has ended, if no run is held."""
        with self._lock:
            thread = self._thread if self._queue is None else None
        if thread is not None:
            thread.join()

    async def add(self, run: str, turn: str, body: str) -> None:
        """Write a turn; return when it is on disk. Raises ConfigError, or RunError after a takeover."""
        if (queue := self._queue) is None or self._process != os.getpid():
            raise RunError(f"run {run!r} has ended, so nothing more of it is recorded; begin a new one")
        done: Mailbox[Exception | None] = Mailbox()
        queue.put(_Entry(run, turn, body, done))
        error = await anext(done)
        if error is not None:
            raise error

    def _work(self, queue: _Queue) -> None:
        connection: Connection | None = None
        while True:
            batch = _next(queue)
            entries = [entry for entry in batch if entry is not None]
            outcome: dict[str, Exception] = {}
            try:
                connection = connection or self._database.connect()
                outcome = self._commit(connection, entries)
            except Exception as error:  # report any error to the waiting callers
                outcome = {entry.run: error for entry in entries}
                _close(connection)
                connection = None  # the next batch opens a new one
            for entry in entries:
                entry.done.post(outcome.get(entry.run))
            if None in batch:
                _close(connection)
                return

    def _commit(self, connection: Connection, entries: list[_Entry]) -> dict[str, Exception]:
        """Write the entries, and heartbeats when due; return errors by run."""
        with self._lock:
            held = dict(self._held)
        if held and monotonic() - self._signed > BEAT:
            self._sign(connection, held)
        if not entries or self._add(connection, entries, held):
            return {}
        by_run: dict[str, list[_Entry]] = {}
        for entry in entries:
            by_run.setdefault(entry.run, []).append(entry)
        return {run: _taken(run) for run, its in by_run.items() if not self._add(connection, its, held)}

    def _sign(self, connection: Connection, held: Mapping[str, str]) -> None:
        with self._database.by_driver(connection) as cursor:
            _execute(
                cursor, connection.dialect, SIGN, [{"run": run, "token": held[run], "now": time()} for run in held]
            )
        self._signed = monotonic()

    def _add(self, connection: Connection, entries: list[_Entry], held: Mapping[str, str]) -> bool:
        """Commit the entries if this process owns all their runs, otherwise none."""
        now = time()
        rows = [
            {"run": entry.run, "turn": entry.turn, "body": entry.body, "now": now, "token": held.get(entry.run, "")}
            for entry in entries
        ]
        try:
            with self._database.by_driver(connection) as cursor:
                if _execute(cursor, connection.dialect, ADD, rows) < len(rows):
                    raise _NotOurs
        except _NotOurs:
            return False
        return True


def _execute(cursor: Any, dialect: Dialect, statement: Insert | Update, rows: list[dict[str, object]]) -> int:
    """Execute a statement for all rows and return the number of affected rows."""
    sql, names = _compiled(statement, dialect)
    values = [tuple(row[name] for name in names) for row in rows] if names is not None else rows
    cursor.executemany(sql, values)
    return int(cursor.rowcount)


@lru_cache(maxsize=8)
def _compiled(statement: Insert | Update, dialect: Dialect) -> tuple[str, list[str] | None]:
    """Compile a statement for the database driver; also return the order of positional values."""
    compiled = statement.compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)
    return str(compiled), compiled.positiontup


def _close(connection: Connection | None) -> None:
    if connection is not None:
        with suppress(SQLAlchemyError):
            connection.close()


def _next(queue: _Queue) -> list[_Entry | None]:
    """Return the queued entries; empty when a heartbeat is due."""
    batch: list[_Entry | None] = []
    try:
        batch.append(queue.get(timeout=BEAT))
        while len(batch) < MOST:
            batch.append(queue.get_nowait())
    except Empty:
        pass
    return batch


def _taken(run: str) -> RunError:
    return RunError(f"run {run!r} was removed, or another process has taken it over; this one has stopped recording it")
