"""Lock a file against other processes while it is open."""

import os
import stat
from errno import EAGAIN
from pathlib import Path
from typing import IO, Any

from cachegraph.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, whose locks would also block readers
    fcntl = None  # type: ignore[assignment]

__all__ = ["lock_file", "open_locked"]

TRIES = 100


def lock_file(file: IO[Any], path: object, remedy: str) -> None:
    """Lock an open file until it is closed or its process ends. Raises InputError if another process holds the lock.

    Skips anything but regular files, and file systems without locks.
    """
    if fcntl is None or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{str(path)!r} is being written by another command; {remedy}") from None
    except OSError:
        return


def open_locked(path: Path, mode: str, remedy: str, called: object = None) -> IO[Any]:
    """Open and lock a file that other processes may replace or delete at any time.

    `called`: the name for messages, by default the path. Raises OSError, or InputError if another command holds it.
    """
    for _ in range(TRIES):
        file = path.open(mode)
        try:
            lock_file(file, path if called is None else called, remedy)
            if _is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()
    raise OSError(EAGAIN, "it is replaced again and again", str(path))


def _is_at(file: IO[Any], path: Path) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
