"""Where cachegraph keeps its files.

`CACHEGRAPH_HOME` puts cache and data in one place. Earlier versions kept all files in the cache folder, which cleaners
empty. The first access moves such files, unless another process uses them: then they stay until this process ends.
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

from platformdirs import user_cache_path, user_data_path

from cachegraph.errors import ConfigError

__all__ = ["Hold", "data_home", "home", "lasting", "left_behind"]

Hold = Callable[[Path], AbstractContextManager[bool]]  # whether the file is unused; blocks new users inside the block

LOCK = ".moving.lock"
SIDECARS = ("-wal", "-shm", "-journal")  # files that SQLite keeps beside a database
log = logging.getLogger("cachegraph")
_mutex = threading.Lock()
_staying: set[Path] = set()  # paths in the cache folder that this process continues to use


def home() -> Path:
    """Folder of replaceable files: models and kernels."""
    return _named() or user_cache_path("cachegraph", appauthor=False)


def data_home() -> Path:
    """Folder of permanent files: runs, sessions, trained fusers."""
    return _named() or user_data_path("cachegraph", appauthor=False)


def lasting(name: str, hold: Hold) -> Path:
    """Return the path of a file or folder in the data folder, after moving it from an earlier version's cache folder.

    Safe in concurrent threads and processes: one moves it while the others wait.
    """
    new, old = data_home() / name, home() / name
    if old == new or not os.path.lexists(old):
        return new
    with _mutex:
        if old not in _staying and not _moved(old, new, hold):
            _stay(old)
        return old if old in _staying else new


def left_behind() -> list[tuple[Path, Path]]:
    """List unused files of an earlier version in the cache folder, each with its newer file in the data folder."""
    if home() == data_home() or not home().is_dir():
        return []
    pairs = [(old, data_home() / old.name) for old in sorted(home().glob("*.db"))]
    return [(old, new) for old, new in pairs if old.is_file() and not old.is_symlink() and new.exists()]


def _named() -> Path | None:
    named = os.environ.get("CACHEGRAPH_HOME")
    try:
        return Path(named).expanduser().absolute() if named else None
    except RuntimeError as error:  # ~ of an unknown user
        raise ConfigError(f"CACHEGRAPH_HOME is {named!r}, and that user has no home; name another folder") from error


def _moved(old: Path, new: Path, hold: Hold) -> bool:
    """Whether to use `new` from now on."""
    if old.is_symlink():  # the user moved it elsewhere on purpose
        return new.exists()
    from filelock import FileLock  # only here: this module is part of every command's start

    try:
        new.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(new.parent / LOCK):
            if not old.exists():
                return True
            if old.is_file() and new.exists():
                return True  # `new` is newer; `cachegraph doctor` lists `old`: see `left_behind`
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
    """Keep using the old path, and tell other processes, since this one may not touch it for hours."""
    _staying.add(old)
    marker = old.with_name(f".{old.name}.used-by-{os.getpid()}")
    try:
        marker.touch()
    except OSError:  # an unwritable folder can't be moved either
        return
    atexit.register(marker.unlink, missing_ok=True)


def _others_stay(old: Path) -> bool:
    import psutil

    prefix, busy = f".{old.name}.used-by-", False
    for marker in old.parent.glob(f"{prefix}*"):
        number = marker.name.removeprefix(prefix)
        if number.isdecimal() and psutil.pid_exists(int(number)):
            busy = True
        else:  # left by a killed process
            marker.unlink(missing_ok=True)
    return busy


def _move(old: Path, new: Path) -> bool:
    """Move a file or folder; into an existing folder, move missing entries. Return False if nothing was moved."""
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
    """Rename atomically, also across disks: copy, rename the complete copy, then delete the original."""
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
