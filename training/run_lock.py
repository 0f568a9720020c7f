"""One training at a time in a folder of checkpoints: its log is locked from the first step to the finished fuser."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cachegraph.common.file_lock import lock_file, open_locked
from cachegraph.errors import FuserError

__all__ = ["LOG", "check_unlocked", "locked_run"]

LOG = "log.jsonl"
TRIES = 100  # another training that ends may delete its empty folder in between
REMEDY = "wait for that training, stop it, or name another output"


@contextmanager
def locked_run(run: Path) -> Iterator[None]:
    """Hold the only right of all processes to write to `run`; it ends with the block, or with the process.

    Creates the folder, and deletes it at the end if nothing was written. Raises InputError while another training has
    it, FuserError where it can't be written.
    """
    log = _locked_log(run)
    try:
        yield
    finally:
        if os.fstat(log.fileno()).st_size == 0:
            with suppress(OSError):
                (run / LOG).unlink()
                run.rmdir()  # which refuses to go with checkpoints in it
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
    raise FuserError(f"the log {str(run / LOG)!r} can't be written; check that its folder is a plain one")
