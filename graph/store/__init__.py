"""The run store: persisted runs, to inspect or resume.

damage        Validation of possibly damaged JSON of the store
database      SQLite and PostgreSQL connections, and their errors as ConfigError
execution     A run that records itself
records       Rows of the store as typed values
resume        Start and resume persisted runs
run_owner     Which process owns a run
run_recorder  Records one run: its finished turns and its result
schema        Tables, and migrations from older stores
store         List, show, begin, resume and remove runs
turn_checks   Which values recorded turns may have
writer        The thread that commits
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Store"]


def __getattr__(name: str) -> Any:  # import SQLAlchemy only when a store is used
    if name != "Store":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .store import Store

    return Store
