"""Lock of a training's checkpoint folder, held from the first step until the fuser is written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cachegraph.common.file_lock import lock_file, open_locked
from cachegraph.errors import FuserError

__all__ = ["LOG", "check_unlocked", "locked_run"]

LOG = "log.jsonl"
TRIES = 100  # a training that ends may delete its empty folder meanwhile
REMEDY = "wait for that training, stop it, or name another output"


@contextmanager
def locked_run(run: Path) -> Iterator[None]:
    """Lock `run` against other processes until the block, or the process, ends.

    Creates the folder, and deletes it at the end if nothing was written. Raises InputError if another training holds
    the lock, FuserError if the folder can't be written.
    """
    log = _locked_log(run)
    try:
        yield
    finally:
        if os.fstat(log.fileno()).st_size == 0:
            with suppress(OSError):
                (run / LOG).unlink()
                run.rmdir()  # fails if there are checkpoints, as it should
        log.close()


def check_unlocked(run: Path) -> None:
    """Raise InputError while a training writes to `run`. Writes nothing."""
    with suppress(OSError), (run / LOG).open("rb") as log:
        lock_file(log, run, REMEDY)


def _locked_log(run: Path) -> IO[bytes]:
    for _ in range(TRIES):
        try:
            run.mkdir(parents=True, exist_ok=True)
            return open_locked(run / LOG, "ab", REMEDY, run)
        except (FileNotFoundError, FileExistsError):
            continue
        except OSError as error:
            raise FuserError(
                f"the log {str(run / LOG)!r} can't be written ({error.strerror}); check room and permissions"
            ) from error
    raise FuserError(f"the log {str(run / LOG)!r} can't be written; check that its folder is an ordinary one")
