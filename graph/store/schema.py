"""Tables, and migrations from older stores.

What people ask for by itself is a column; the rest is JSON, in ASCII, so that any text survives any database.
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
    Column("seconds", Double, nullable=False),  # how long it ran, all attempts together
    Column("recipe", Text, nullable=False),  # YAML
    Column("setting", Text, nullable=False),  # JSON: inputs, folder, permissions, versions
    Column("outcome", Text, nullable=False),  # JSON: the error, and the agents that did not finish
    Column("owner", String(400)),  # JSON: the process that runs it
    Column("token", String(32)),  # changes with every owner; who writes must know it
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
    Column("body", Text, nullable=False),  # JSON: a Recorded
    sqlite_with_rowid=False,  # one tree, so that a turn is one page to write
)


def _first(connection: Connection) -> None:
    metadata.create_all(connection)


# From version n to n + 1. Steps are never changed once released; a new one is added at the end.
STEPS: Sequence[Callable[[Connection], Any]] = (_first,)


def version_of(connection: Connection) -> int:
    """The version of this store; 0 where there is none yet."""
    if not inspect(connection).has_table(versions.name):
        return 0
    return int(connection.execute(select(versions.c.version)).scalar_one())


def migrate(connection: Connection, place: str) -> None:
    """Bring the store up to date, in the caller's transaction: wholly or not at all. Raises ConfigError."""
    if connection.dialect.name == "postgresql":  # SQLite's writers queue by themselves
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
