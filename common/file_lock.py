"""The only right of all processes to write a file, as long as it is open."""

import os
import stat
from typing import IO, Any

from cachegraph.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, whose locks would keep readers out, too
    fcntl = None  # type: ignore[assignment]

__all__ = ["lock_file"]


def lock_file(file: IO[Any], path: object, remedy: str) -> None:
    """Lock an open file until it is closed, or its process ends. Raises InputError where another one has it.

    What is no plain file, and a file system without locks, is left alone.
    """
    if fcntl is None or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{str(path)!r} is being written by another command; {remedy}") from None
    except OSError:
        return
