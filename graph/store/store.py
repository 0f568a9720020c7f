"""List, show, begin, resume and remove runs."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from secrets import token_hex
from time import time
from types import TracebackType
from typing import Any, Self

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from cachegraph.errors import ConfigError, InputError, library_errors

from ..run.turn_log import RecordedTurn
from .damage import is_number, is_text, is_time
from .database import Database
from .records import Outcome, RunInfo, Setting, StoredRun, read_info, read_turn, status_of
from .run_owner import is_alive, me, take
from .run_recorder import RunRecorder, to_json
from .schema import runs, turns
from .writer import Writer

__all__ = ["Store"]

OVER = ("finished",)


class Store:
    """Persisted runs. `place` is a file or a postgresql:// address.

    Default: the variable CACHEGRAPH_STORE, or runs.db in CACHEGRAPH_HOME. Opened at first use; safe to use from
    several threads and processes concurrently.
    """

    def __init__(self, place: str | os.PathLike[str] | None = None):
        self._database = Database(place)
        self._writer = Writer(self._database)
        self._prefix = ""  # prefix of the run ids that it lists and begins

    def within(self, prefix: str) -> "Store":
        """Return this store restricted to run ids with a prefix, both for listing and for new runs."""
        other = copy(self)
        other._prefix = prefix
        return other

    @property
    def place(self) -> str:
        """Path or address, without a password."""
        return self._database.place

    def list(
        self, limit: int = 20, *, skip: int = 0, graph: str | None = None, status: str | None = None
    ) -> Sequence[RunInfo]:
        """List runs, newest first."""
        counted = select(func.count()).where(turns.c.run == runs.c.id).scalar_subquery().label("finished_turns")
        columns = [runs.c[name] for name in ("id", "graph", "status", "created", "seconds", "owner", "heartbeat")]
        query = select(*columns, counted).order_by(runs.c.created.desc(), runs.c.id.desc())
        if self._prefix:
            query = query.where(runs.c.id >= self._prefix, runs.c.id <= self._prefix + "\uffff")
        if graph is not None:
            query = query.where(runs.c.graph == graph)
        if status is not None:
            query = query.where(runs.c.status == ("running" if status == "interrupted" else status))
        if status not in ("running", "interrupted"):
            query = query.limit(limit).offset(skip)
        with self._database.reading() as connection:
            found = [read_info(row) for row in connection.execute(query)]
        if status in ("running", "interrupted"):  # only the owner's liveness distinguishes the two
            return [run for run in found if run.status == status][skip : skip + limit]
        return found

    def get(self, run: str) -> StoredRun:
        """Return a run by its id or a unique prefix. Raises InputError."""
        with self._database.reading() as connection:
            found = _find(connection, run, self.place)
            with self._damage(found):
                return _whole(connection, found)

    def remove(self, *named: str) -> Sequence[str]:
        """Delete runs atomically and return their ids. Raises InputError for a live run."""
        with self._database.writing() as connection:
            ids = [_find(connection, name, self.place) for name in named]
            for row in connection.execute(select(runs.c.id, runs.c.owner, runs.c.heartbeat).where(runs.c.id.in_(ids))):
                if is_alive(row.owner, row.heartbeat):
                    raise InputError(f"run {row.id!r} is at work and can't be removed; wait for it, or end its process")
            _delete(connection, runs.c.id.in_(ids))
        return ids

    def prune(self, older_than: float) -> int:
        """Delete runs that began more than `older_than` seconds ago, except live ones; return their number."""
        with self._database.writing() as connection:
            old = select(runs.c.id, runs.c.owner, runs.c.heartbeat).where(runs.c.created < time() - older_than)
            old = old.with_for_update()  # nobody may resume them until they are deleted
            doomed = [row.id for row in connection.execute(old) if not is_alive(row.owner, row.heartbeat)]
            for start in range(0, len(doomed), 500):
                _delete(connection, runs.c.id.in_(doomed[start : start + 500]))
        return len(doomed)

    def begin(self, graph: str, recipe: str, setting: Setting) -> RunRecorder:
        """Enter a new run."""
        run, token, now = self._prefix + token_hex(6), token_hex(8), time()
        row = {"id": run, "graph": graph, "status": "running", "created": now, "seconds": 0.0, "recipe": recipe}
        ownership = {"owner": me(), "token": token, "heartbeat": now}
        with self._database.writing() as connection:
            connection.execute(
                insert(runs).values(**row, **ownership, setting=setting.to_json(), outcome=Outcome(starts=1).to_json())
            )
        return self._session(run, token, {})

    def resume(self, named: str, answers: Mapping[str, str] | None = None) -> RunRecorder:
        """Resume a run; `answers` maps paused turns to people's answers.

        Raises InputError for a run that has finished or that another process owns.
        """
        token = token_hex(8)
        with self._database.writing() as connection:
            run = _find(connection, named, self.place)
            row = take(connection, run, token)
            if row.status in OVER:
                raise InputError(f"run {run!r} has finished; `cachegraph runs show {run}` shows what it gave")
            for turn, answer in (answers or {}).items():
                known_turn = select(turns.c.turn).where(turns.c.run == run, turns.c.turn == turn)
                if connection.execute(known_turn).first() is not None:
                    raise InputError(
                        f"the question {turn!r} of run {run!r} has been answered meanwhile; "
                        f"`cachegraph runs show {run}` shows the answer"
                    )
                body = to_json(RecordedTurn(answer))
                connection.execute(insert(turns).values(run=run, turn=turn, recorded=time(), body=body))
            with self._damage(run):
                known = {stored.turn: stored.recorded for stored in _turns(connection, run)}
                outcome = Outcome.from_json(row.outcome).restarted(len(known))
            connection.execute(update(runs).where(runs.c.id == run).values(outcome=outcome.to_json()))
        return self._session(run, token, known)

    def give_up(self, run: str, reason: str) -> None:
        """Record that an interrupted run has failed. Raises InputError if a process owns it."""
        ended = {"status": "failed", "owner": None, "heartbeat": None, "outcome": Outcome(reason).to_json()}
        with self._database.writing() as connection:
            take(connection, _find(connection, run, self.place), token_hex(8))
            connection.execute(update(runs).where(runs.c.id == run).values(ended))

    def close(self) -> None:
        """Close the database when all runs have ended; a later use reopens it."""
        self._writer.wait()
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {self.place}>"

    def _damage(self, run: str) -> AbstractContextManager[None]:
        """Convert errors from reading a damaged run to a ConfigError that names it."""
        damage = f"run {run!r} in the run store {self.place} is damaged"
        return library_errors(lambda why: ConfigError(f"{damage} ({why}); remove it with: cachegraph runs rm {run}"))

    def _session(self, run: str, token: str, known: Any) -> RunRecorder:
        self._writer.hold(run, token)
        return RunRecorder(self._database, self._writer, run, token, known)


def _find(connection: Connection, named: str, place: str) -> str:
    """Return the id that has this prefix."""
    last = named + "\uffff"
    found = [
        row.id for row in connection.execute(select(runs.c.id).where(runs.c.id >= named, runs.c.id <= last).limit(9))
    ]
    if named in found or (named and len(found) == 1):
        return named if named in found else str(found[0])
    if not named or not found:
        raise InputError(f"there is no run {named!r} in {place}; `cachegraph runs list` shows those there are")
    shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
    raise InputError(f"several runs begin with {named!r}: {shown}; give more letters")


def _whole(connection: Connection, run: str) -> StoredRun:
    row = connection.execute(select(runs).where(runs.c.id == run)).one()
    if not (is_text(row.recipe) and is_text(row.graph) and is_time(row.created) and is_number(row.seconds)):
        raise ValueError("its row holds other things than a run's")
    setting, outcome = Setting.from_json(row.setting), Outcome.from_json(row.outcome)
    finished = _turns(connection, run)
    return StoredRun(run, row.graph, status_of(row), row.created, row.seconds, row.recipe, setting, outcome, finished)


def _turns(connection: Connection, run: str) -> "list[Any]":
    found = connection.execute(select(turns).where(turns.c.run == run).order_by(turns.c.recorded))
    return [read_turn(row) for row in found]


def _delete(connection: Connection, which: ColumnElement[bool]) -> None:
    connection.execute(delete(turns).where(turns.c.run.in_(select(runs.c.id).where(which))))
    connection.execute(delete(runs).where(which))
