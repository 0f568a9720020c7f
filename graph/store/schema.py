"""Tables, and migrations from older stores.

Queried fields are columns; the rest is ASCII JSON, so that any text survives any database.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    select,
)

from cachegraph import __version__
from cachegraph.errors import ConfigError

__all__ = ["STEPS", "migrate", "runs", "turns", "version_of"]

metadata = MetaData()

versions = Table("cachegraph_store", metadata, Column("version", Integer, nullable=False))

runs = Table(
    "cachegraph_runs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("graph", String(100), nullable=False),
    Column("status", String(16), nullable=False),
    Column("created", Double, nullable=False),  # seconds since 1970, as all times here
    Column("seconds", Double, nullable=False),  # run time, summed over all attempts
    Column("recipe", Text, nullable=False),  # YAML
    Column("setting", Text, nullable=False),  # JSON: inputs, folder, permissions, versions
    Column("outcome", Text, nullable=False),  # JSON: the error, and the agents that did not finish
    Column("owner", String(400)),  # JSON: the owning process
    Column("token", String(32)),  # changes with every owner; required for writes
    Column("heartbeat", Double),
    Index("cachegraph_runs_created", "created", "id"),
    Index("cachegraph_runs_status", "status", "created", "id"),
    Index("cachegraph_runs_graph", "graph", "created", "id"),
)

turns = Table(
    "cachegraph_turns",
    metadata,
    Column("run", String(32), ForeignKey("cachegraph_runs.id", ondelete="CASCADE"), primary_key=True),
    Column("turn", String(400), primary_key=True),
    Column("recorded", Double, nullable=False),
    Column("body", Text, nullable=False),  # JSON: a RecordedTurn
    sqlite_with_rowid=False,  # a single B-tree, so that a turn writes one page
)


def _first(connection: Connection) -> None:
    metadata.create_all(connection)


# From version n to n + 1. Never change released steps; append new ones.
STEPS: Sequence[Callable[[Connection], Any]] = (_first,)


def version_of(connection: Connection) -> int:
    """Return the version of this store; 0 for a new one."""
    if not inspect(connection).has_table(versions.name):
        return 0
    return int(connection.execute(select(versions.c.version)).scalar_one())


def migrate(connection: Connection, place: str) -> None:
    """Migrate the store atomically, in the caller's transaction. Raises ConfigError."""
    if connection.dialect.name == "postgresql":  # SQLite already serializes writers
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(5072719)")
    version = version_of(connection)
    if version > len(STEPS):
        raise ConfigError(
            f"the run store {place} was written by a newer cachegraph (its format is {version}, {__version__} knows "
            f"{len(STEPS)}); upgrade cachegraph, or set CACHEGRAPH_STORE to another place"
        )
    for step in STEPS[version:]:
        step(connection)
    if version == 0:
        connection.execute(versions.insert().values(version=len(STEPS)))
    elif version < len(STEPS):
        connection.execute(versions.update().values(version=len(STEPS)))
