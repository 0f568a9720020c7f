"""Servers of this user on this machine: each announces itself in a file, so that `cachegraph run` finds it.

A file names the server's address and its recipes, with a hash of every file that they consist of. Its server holds a
lock on it: the file of a dead process is unlocked, and is ignored and removed. Imports neither torch nor transformers.
"""

import hashlib
import ipaddress
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from cachegraph import __version__
from cachegraph.common.paths import home

try:
    import fcntl
except ImportError:  # Windows, where no server announces itself
    fcntl = None  # type: ignore[assignment]

__all__ = ["AnnouncedRecipe", "Announcement", "LocalServer", "find_server", "has_servers", "hashes_of", "permissions"]

VARIABLES = ("CACHEGRAPH_STORE", "CACHEGRAPH_CATALOGUE")  # which change what a run does
MAX_BYTES = 4_000_000


@dataclass(frozen=True)
class AnnouncedRecipe:
    """A recipe of a server."""

    name: str
    file: str  # resolved path
    hashes: Mapping[str, str]  # of its files, by path
    inputs: Mapping[str, str]  # types
    output: str  # the agent that writes the reply
    permissions: Mapping[str, Any]  # and strict


@dataclass(frozen=True)
class LocalServer:
    """A live server that serves a recipe."""

    url: str
    recipe: AnnouncedRecipe


class Announcement:
    """This process's file. Written by `write`, removed by `remove`; both never fail the server."""

    def __init__(self, url: str, recipes: Sequence[AnnouncedRecipe]):
        self._path = _folder() / f"{os.getpid()}.json"
        self._body = {
            "version": __version__,
            "url": url,
            "settings": settings_now(),
            "recipes": [asdict(recipe) for recipe in recipes],
        }
        self._file: IO[str] | None = None

    def write(self) -> None:
        """Announce the server, readable by its user only."""
        if fcntl is None:
            return
        draft = self._path.with_suffix(".part")
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            self._file = open(draft, "x", encoding="utf-8", opener=_private)  # noqa: SIM115  (open while the server runs)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            json.dump(self._body, self._file)
            self._file.flush()
            draft.replace(self._path)  # the lock moves with the file

    def remove(self) -> None:
        """Withdraw the announcement."""
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
                file.close()


def has_servers() -> bool:
    """Whether a server of this user may run on this machine."""
    with suppress(OSError):  # a folder that can't be read announces none
        return any(_folder().glob("*.json"))
    return False


def find_server(recipe: Path, permitted: Mapping[str, Any]) -> LocalServer | None:
    """Return a live server of this user that serves this very recipe, with the same permissions and settings."""
    try:
        file = str(recipe.resolve())
        places = sorted(_folder().glob("*.json")) if fcntl is not None and _is_private(_folder()) else []
    except (OSError, ValueError):
        return None
    for place in places:
        body = _read(place)
        if body is None or body.get("version") != __version__ or body.get("settings") != settings_now():
            continue
        url, recipes = body.get("url"), body.get("recipes")
        if not (isinstance(url, str) and _is_loopback(url) and isinstance(recipes, list)):
            continue
        for announced in (AnnouncedRecipe(**fields) for fields in recipes):
            if (
                announced.file == file
                and announced.permissions == permitted
                and hashes_of(announced.hashes) == announced.hashes
            ):
                return LocalServer(url, announced)
    return None


def permissions(env: Iterable[str], paths: bool, code: bool, local: bool, strict: bool) -> dict[str, Any]:
    """Return what a command line permits a recipe, in the form of an announcement."""
    return {"env": sorted(env), "paths": paths, "code": code, "local": local, "strict": strict}


def settings_now() -> dict[str, str]:
    """Return the environment variables that change what a run does."""
    return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


def hashes_of(files: Iterable[str]) -> dict[str, str]:
    """Hash files as they are now; an unreadable one has an empty hash, which no other file has."""
    hashes = {}
    for file in files:
        try:
            hashes[file] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        except (OSError, ValueError):
            hashes[file] = ""
    return hashes


def _read(place: Path) -> dict[str, Any] | None:
    """Return the body of a live server's file. Removes the file of a dead one."""
    try:
        with open(place, encoding="utf-8") as file:
            if not _is_own(os.fstat(file.fileno())):
                return None
            if not _is_locked(file):
                place.unlink(missing_ok=True)
                return None
            body = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _is_locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: several commands may look at the same time
    except BlockingIOError:
        return True
    return False


def _is_own(info: os.stat_result) -> bool:
    return stat.S_ISREG(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o077


def _is_private(folder: Path) -> bool:
    """Whether nobody else can put a file there."""
    info = os.stat(folder)
    return info.st_uid == os.getuid() and not info.st_mode & 0o022


def _is_loopback(url: str) -> bool:
    try:
        return urlsplit(url).scheme == "http" and ipaddress.ip_address(urlsplit(url).hostname or "").is_loopback
    except ValueError:
        return False


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _folder() -> Path:
    return home() / "servers"
