"""JSON values in the cache folder, keyed by the hash of what they depend on.

A file that can't be read is none, and a folder that can't be written to keeps none. A file is there as a whole or not
at all, whatever processes write it at the same time.
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

_KEPT = 256  # files of a folder; the oldest go first
_SAMPLES = 64  # of a large file, at even distances
_SAMPLE = 4096  # bytes
_log = logging.getLogger("cachegraph")


class KeptJson:
    """One value. `folder` is that of its kind; `facts` are JSON values, and the value holds as long as they do."""

    def __init__(self, folder: str, facts: Sequence[Any]):
        self._key = _digest(facts)
        self._path = home() / folder / f"{self._key[:32]}.json"

    def read(self) -> Any:
        """The value; None if there is none."""
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            whole = kept["key"] == self._key and kept["digest"] == _digest(kept["value"])
            return kept["value"] if whole else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            _log.debug("%s can't be read: %s", self._path, error)
            return None

    def write(self, value: Any) -> None:
        """Keep a value, instead of an earlier one."""
        kept = {"key": self._key, "digest": _digest(value), "value": value}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(kept, indent=1))
            self._sweep()
        except OSError as error:
            _log.debug("%s can't be kept: %s", self._path, error)

    def _sweep(self) -> None:
        """Leave the newest files."""
        files = sorted(self._path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in files[:-_KEPT]:
            path.unlink(missing_ok=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def file_facts(path: Path) -> list[Any]:
    """What changes with a file's contents: its times and size, and samples for where many files have the same."""
    stat = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(sample * max(stat.st_size - _SAMPLE, 0) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return [path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, digest.hexdigest()]
