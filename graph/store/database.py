"""SQLite and PostgreSQL connections, and their errors as ConfigError.

SQLite runs in WAL mode with synchronous=FULL. A killed process loses no commit in any mode; FULL also survives a power
failure, at the cost of one fsync per commit, which is short compared to an agent's turn.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoResultFound, SQLAlchemyError
from sqlalchemy.pool import NullPool

from cachegraph.common.paths import lasting
from cachegraph.errors import CachegraphError, ConfigError, reason_of

from .run_owner import is_alive
from .schema import STEPS, migrate, version_of

__all__ = ["Database"]

DAMAGE = ("malformed", "not a database", "no such table", "no such column", "no version", "disk I/O error")
PATIENCE = 15.0  # seconds to wait for another writing process


class Database:
    """One database, migrated at first use.

    Every transaction opens a new connection, so that none stays open if a program doesn't close its store, and none
    is inherited by a forked process.
    """

    def __init__(self, place: str | os.PathLike[str] | None, patience: float = PATIENCE):
        self._url = _url(place)
        self._patience = patience
        self._engine: Engine | None = None
        file = self._url.database if self._url.get_backend_name() == "sqlite" else None
        self._file = Path(file) if file is not None else None

    @property
    def place(self) -> str:
        """Path or address for people, without a password."""
        return repr(str(self._file)) if self._file is not None else repr(self._url.render_as_string())

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a read-only transaction. Raises ConfigError."""
        with self._errors(), self._opened().connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a write transaction: on disk when the block ends, or not at all. Raises ConfigError."""
        with self._errors(), self._opened().connect() as connection, _writes(connection):
            yield connection

    @contextmanager
    def by_driver(self, connection: Connection) -> Iterator[Any]:
        """Open a write transaction with the driver's cursor, which is faster for frequent writes.

        `connection` comes from `connect`. Raises ConfigError for what the database refuses.
        """
        driver: Any = connection.connection.driver_connection
        try:
            with closing(driver.cursor()) as cursor:
                try:
                    if self._file is not None:
                        cursor.execute("BEGIN IMMEDIATE")
                    yield cursor
                    driver.commit()
                except BaseException:
                    driver.rollback()
                    raise
        except connection.dialect.loaded_dbapi.Error as error:
            raise ConfigError(self._sentence(error)) from error
        except UnicodeDecodeError as error:  # SQLite's message about a damaged file may contain any bytes
            raise ConfigError(self._sentence(f"malformed: {error}")) from error

    def connect(self) -> Connection:
        """Open a connection for several transactions; the caller closes it. Raises ConfigError."""
        with self._errors():
            return self._opened().connect()

    def close(self) -> None:
        """Reset, so that the next use checks the database again."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            engine.dispose()

    def _opened(self) -> Engine:
        if self._engine is None:
            engine = self._connectable()
            with engine.connect() as connection:
                with connection.begin():
                    current = version_of(connection) == len(STEPS)
                if not current:
                    with _writes(connection):
                        migrate(connection, self.place)
            self._engine = engine
        return self._engine

    def _connectable(self) -> Engine:
        if self._file is None:
            try:
                return sqlalchemy.create_engine(self._url, poolclass=NullPool)
            except ModuleNotFoundError as error:
                raise ConfigError(
                    f"the run store {self.place} needs {error.name!r}; pip install 'cachegraph[postgres]'"
                ) from error
        _make_private(self._file)
        engine = sqlalchemy.create_engine(
            self._url, poolclass=NullPool, connect_args={"timeout": self._patience, "check_same_thread": False}
        )
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", _on_begin)
        return engine

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except CachegraphError:
            raise
        except DBAPIError as error:
            raise ConfigError(self._sentence(error.orig)) from error
        except NoResultFound as error:
            raise ConfigError(self._sentence("it has no version")) from error
        except SQLAlchemyError as error:
            raise ConfigError(f"the run store {self.place} can't be used: {error}") from error
        except Exception as error:  # a damaged file makes the driver or value conversion raise anything
            raise ConfigError(self._sentence(f"malformed: {reason_of(error)}")) from error

    def _sentence(self, error: object) -> str:
        words = " ".join(str(error).split())
        if self._file is None:
            return f"the run store {self.place} can't be used: {words}; check CACHEGRAPH_STORE and that the server runs"
        if "locked" in words or "busy" in words:
            return (
                f"the run store {self.place} is locked: another process has been writing for {self._patience:g} s; "
                "try again when it has ended"
            )
        if "full" in words:
            return f"the disk of the run store {self.place} is full; make room"
        if "readonly" in words or "unable to open" in words:
            return f"the run store {self.place} can't be written ({words}); point CACHEGRAPH_STORE to a place of yours"
        if any(sign in words for sign in DAMAGE):
            return (
                f"the run store {self.place} is damaged, or no run store ({words}); move it away and a new one is "
                "begun, or point CACHEGRAPH_STORE to another"
            )
        return f"the run store {self.place} can't be used: {words}"


def _url(place: str | os.PathLike[str] | None) -> URL:
    named = os.fspath(place) if place is not None else os.environ.get("CACHEGRAPH_STORE")
    named = named or str(lasting("runs.db", _idle))
    if "://" not in named:
        return URL.create("sqlite", database=str(Path(named).expanduser().absolute()))
    try:
        url = make_url(named)
    except ArgumentError as error:
        raise ConfigError(
            "CACHEGRAPH_STORE is not the address of a database; write postgresql://user@host/name"
        ) from error
    backend = url.get_backend_name()
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite" or not url.database:
        raise ConfigError(f"a run store is a SQLite file or a PostgreSQL database, not {backend!r}")
    return url


@contextmanager
def _idle(file: Path) -> Iterator[bool]:
    """Yield whether no process has this database open or owns a run in it. Blocks writers during the move."""
    with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()  # requires exclusive access
            alive = mode != "delete" or any(
                is_alive(owner, heartbeat)
                for owner, heartbeat in connection.execute(
                    "SELECT owner, heartbeat FROM cachegraph_runs WHERE status = 'running'"
                )
            )
            if not alive:
                connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            alive = "locked" in str(error)  # otherwise it lacks the table, and Store reports the problem
        except sqlite3.DatabaseError:
            alive = False  # not a database, so unused
        if os.name == "nt":  # an open file can't be renamed there
            connection.close()
        yield not alive


def _make_private(file: Path) -> None:
    """Restrict the file to its owner: runs contain private inputs."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise ConfigError(
            f"the run store {str(file)!r} can't be written ({error.strerror}); "
            "point CACHEGRAPH_STORE or CACHEGRAPH_HOME to a place of yours"
        ) from error


def _on_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # sqlite3 would start transactions implicitly, but none around CREATE TABLE
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: Connection) -> None:
    # A transaction that reads first and then writes could conflict: writers queue at the start.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _writes(connection: Connection) -> Iterator[None]:
    with connection.execution_options(writes=True).begin():
        yield
