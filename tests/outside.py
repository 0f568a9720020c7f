"""Notes what tests write into the project, or into cachegraph's places in the user's home."""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Watcher"]

ROOT = Path(__file__).resolve().parent.parent
# Of tools, in the folder of the project: bytecode, pytest, hypothesis, coverage and the linters.
TOOLS = ("__pycache__", ".pytest_cache", ".hypothesis", ".coverage", ".ruff_cache", ".mypy_cache", "htmlcov", ".git")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watcher:
    """Hears of every open for writing, new folder, rename and SQLite database of this process, while it is `on`."""

    def __init__(self, allowed: Sequence[Path]):
        self.on = False
        self.found: list[str] = []
        self._project, self._home = f"{ROOT}{os.sep}", f"{Path.home()}{os.sep}"
        places = (*allowed, Path(tempfile.gettempdir()))
        self._allowed = tuple({f"{each}{os.sep}" for path in places for each in (path, path.resolve())})
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            by_mode = isinstance(mode, str) and bool(set(mode) & set("wax+"))
            if not by_mode and not (isinstance(flags, int) and flags & WRITES):
                return
        elif event in ("os.mkdir", "sqlite3.connect"):
            path = arguments[0]
        elif event == "os.rename":
            path = arguments[1]
        else:
            return
        self._note(event, path)

    def _note(self, event: str, path: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        place = os.path.abspath(os.fsdecode(path))
        in_home = place.startswith(self._home) and not place.startswith(self._allowed) and "cachegraph" in place
        if not in_home and not place.startswith(self._project):
            return
        if any(part.startswith(TOOLS) for part in place.split(os.sep)):
            return
        if event == "os.mkdir" and os.path.isdir(place):  # exist_ok
            return
        self.found.append(f"{event} {place}")
