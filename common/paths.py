"""Where cachegraph keeps its files.

`CACHEGRAPH_HOME` puts both in one place. Earlier versions kept all of it in the cache folder, which cleaners empty.
What lies there is moved when it is first asked for, unless somebody uses it then: it stays for as long as this process.
"""

import atexit
import logging
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from errno import EXDEV
from pathlib import Path

import psutil
from filelock import FileLock
from platformdirs import user_cache_path, user_data_path

__all__ = ["Hold", "data_home", "home", "lasting", "left_behind"]

Hold = Callable[[Path], AbstractContextManager[bool]]  # whether nobody uses what lies there; nobody begins to meanwhile

LOCK = ".moving.lock"
SIDECARS = ("-wal", "-shm", "-journal")  # that SQLite keeps beside a database
log = logging.getLogger("cachegraph")
_mutex = threading.Lock()
_staying: set[Path] = set()  # places in the cache folder that this process goes on with


def home() -> Path:
    """The folder of what can be had again: models and kernels."""
    return _named() or user_cache_path("cachegraph", appauthor=False)


def data_home() -> Path:
    """The folder of what must last: runs, sessions, trained fusers."""
    return _named() or user_data_path("cachegraph", appauthor=False)


def lasting(name: str, hold: Hold) -> Path:
    """The place of a file or folder of the data folder, with what an earlier version left in the cache folder.

    Safe in many threads and processes at once: one moves it, and the others wait.
    """
    new, old = data_home() / name, home() / name
    if old == new or not os.path.lexists(old):
        return new
    with _mutex:
        if old not in _staying and not _moved(old, new, hold):
            _stay(old)
        return old if old in _staying else new


def left_behind() -> list[tuple[Path, Path]]:
    """Files of an earlier version in the cache folder that nobody uses, each with the newer one in the data folder."""
    if home() == data_home() or not home().is_dir():
        return []
    pairs = [(old, data_home() / old.name) for old in sorted(home().glob("*.db"))]
    return [(old, new) for old, new in pairs if old.is_file() and not old.is_symlink() and new.exists()]


def _named() -> Path | None:
    named = os.environ.get("CACHEGRAPH_HOME")
    return Path(named).expanduser().absolute() if named else None


def _moved(old: Path, new: Path, hold: Hold) -> bool:
    """Whether `new` is the place to use from now on."""
    if old.is_symlink():  # somebody has put it elsewhere on purpose
        return new.exists()
    try:
        new.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(new.parent / LOCK):
            if not old.exists():
                return True
            if old.is_file() and new.exists():
                return True  # the newer one; `cachegraph doctor` shows the other: see `left_behind`
            with hold(old) as free:
                if not free or _others_stay(old):
                    return new.exists()
                if _move(old, new):
                    log.warning(
                        "cachegraph: moved %s to %s, since what must last does not belong in a cache folder", old, new
                    )
    except OSError as error:
        log.warning("cachegraph: %s stays where it is: it can't be moved to %s (%s)", old, new, error)
        return new.exists()
    return True


def _stay(old: Path) -> None:
    """Go on with the old place, and tell other processes so, since this one may leave it alone for hours."""
    _staying.add(old)
    marker = old.with_name(f".{old.name}.used-by-{os.getpid()}")
    try:
        marker.touch()
    except OSError:  # a place that nobody can write, nobody can move
        return
    atexit.register(marker.unlink, missing_ok=True)


def _others_stay(old: Path) -> bool:
    prefix, busy = f".{old.name}.used-by-", False
    for marker in old.parent.glob(f"{prefix}*"):
        number = marker.name.removeprefix(prefix)
        if number.isdecimal() and psutil.pid_exists(int(number)):
            busy = True
        else:  # of a process that was killed
            marker.unlink(missing_ok=True)
    return busy


def _move(old: Path, new: Path) -> bool:
    """Move a file or folder; of a folder that is there already, what it lacks. False where nothing was moved."""
    if not new.exists():
        for sidecar in SIDECARS:
            if (beside := old.with_name(old.name + sidecar)).exists():
                _rename(beside, new.with_name(new.name + sidecar))
        _rename(old, new)
        return True
    lacking = [entry for entry in old.iterdir() if not os.path.lexists(new / entry.name)]
    for entry in lacking:
        _rename(entry, new / entry.name)
    if not any(old.iterdir()):
        old.rmdir()
    return bool(lacking)


def _rename(old: Path, new: Path) -> None:
    """In one step also between two disks: the copy gets its name when it is whole, and then the original goes."""
    try:
        os.rename(old, new)
        return
    except OSError as error:
        if error.errno != EXDEV:
            raise
    part = new.with_name(f".{new.name}.{os.getpid()}.part")
    try:
        if old.is_dir():
            shutil.copytree(old, part, symlinks=True)
        else:
            shutil.copy2(old, part)
        os.rename(part, new)
    except OSError:
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
        raise
    shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
