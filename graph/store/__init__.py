"""The run store: what every run did, on disk, so that it can be looked at later and gone on with.

schema.py     the tables, and how an older store becomes a newer one
database.py   opening SQLite or PostgreSQL, and its errors in our words
records.py    what the store tells of a run
owner.py      which process a run belongs to
writer.py     the thread that commits
session.py    one run being recorded: its journal
execution.py  a run that is recorded while it goes on
store.py      list, show, begin, resume, remove
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Store"]


def __getattr__(name: str) -> Any:  # SQLAlchemy is imported by those who keep runs only
    if name != "Store":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .store import Store

    return Store
