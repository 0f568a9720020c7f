"""JSON values in the cache folder, keyed by the hash of what they depend on.

An unreadable file counts as missing; an unwritable folder stores nothing. Concurrent processes write files atomically.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .atomic_write import write_atomically
from .paths import home

__all__ = ["KeptJson", "file_facts"]

_KEPT = 1024  # files per folder; the oldest are deleted first
_SAMPLES = 64  # per large file, evenly spaced
_SAMPLE = 4096  # bytes
_log = logging.getLogger("cachegraph")


class KeptJson:
    """One cached value. `folder` names its kind; `facts` are JSON values on which the value depends."""

    def __init__(self, folder: str, facts: Sequence[Any]):
        self._key = _digest(facts)
        self._path = home() / folder / f"{self._key[:32]}.json"

    def read(self) -> Any:
        """Return the value; None if there is none."""
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            valid = kept["key"] == self._key and kept["digest"] == _digest(kept["value"])
            return kept["value"] if valid else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            _log.debug("%s can't be read: %s", self._path, error)
            return None

    def write(self, value: Any) -> None:
        """Store a value, replacing an earlier one."""
        kept = {"key": self._key, "digest": _digest(value), "value": value}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(kept, indent=1))
            self._sweep()
        except OSError as error:
            _log.debug("%s can't be kept: %s", self._path, error)

    def _sweep(self) -> None:
        """Delete all but the newest files."""
        files = sorted(self._path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in files[:-_KEPT]:
            path.unlink(missing_ok=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def file_facts(path: Path) -> list[Any]:
    """Return facts that change with a file's contents: times, size, and samples in case those coincide."""
    stat = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(sample * max(stat.st_size - _SAMPLE, 0) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return [path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, digest.hexdigest()]
