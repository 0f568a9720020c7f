"""The file of a batch's replies: one JSON line a row, written as the row ends.

A line's `key` is a hash of the recipe and the row's inputs. A later call keeps the lines of rows that need no other
run; a file of another recipe, or of other inputs, is refused and stays as it is.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from cachegraph.common.atomic_write import write_atomically
from cachegraph.common.file_lock import open_locked
from cachegraph.common.json_text import JSONProblem, parse_json
from cachegraph.common.surrogates import mend
from cachegraph.errors import ConfigError, InputError
from cachegraph.graph.run.result import Result

__all__ = ["RepliesFile", "failed_line", "reply_line", "row_key"]

KEPT = ("finished", "partial", "paused")  # statuses of rows that do not run again


def row_key(recipe: str, inputs: Mapping[str, Any]) -> str:
    """Hash a recipe and the inputs of a row."""
    text = json.dumps([recipe, inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def reply_line(row: int, key: str, result: Result) -> dict[str, Any]:
    """Format an ended row. `row` counts from 0."""
    answer = result.agents.get(result.output)
    line: dict[str, Any] = {"row": row, "key": key, "status": result.status, "text": result.text}
    if len(result.outputs) > 1:
        line["outputs"] = result.outputs
    if answer is not None and answer.data is not None:
        line["data"] = answer.data
    tokens = result.totals.tokens
    line |= {"error": result.error, "run_id": result.run_id, "seconds": round(result.seconds, 3)}
    line["tokens"] = {"prefilled": tokens.prefilled, "reused": tokens.reused, "generated": tokens.generated}
    line["warnings"] = [str(warning) for warning in result.warnings]
    return line


def failed_line(row: int, key: str, error: str) -> dict[str, Any]:
    """Format a row that could not run."""
    return {"row": row, "key": key, "status": "failed", "text": "", "error": error, "run_id": None}


class RepliesFile:
    """An open, locked file. `kept` maps rows to the statuses that earlier calls recorded for them.

    `keys` holds the key of every row of the data.
    """

    def __init__(self, path: Path, keys: Sequence[str]):
        self.path = path
        self._lock, lines = self._open()
        try:
            found = _read(path, lines, keys)
            kept = {row: line for row, line in found.items() if line["status"] in KEPT}
            self.kept = {row: str(line["status"]) for row, line in kept.items()}
            self._file = self._rewrite(list(kept.values())) if lines else self._lock
        except BaseException:
            self._lock.close()
            raise

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line. It is in the file when this returns. Raises ConfigError if it can't be written."""
        try:
            self._file.write(_encoded(line))
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def sort(self) -> None:
        """Put the lines in the order of the rows."""
        try:
            lines = [json.loads(line) for line in self.path.read_bytes().splitlines()]
            write_atomically(
                self.path, b"".join(_encoded(line) for line in sorted(lines, key=lambda reply: reply["row"]))
            )
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        self._lock.close()
        self._file.close()

    def _open(self) -> tuple[IO[bytes], bytes]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open_locked(self.path, "ab", "wait for it, or give --out another name")
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error
        try:
            return file, self.path.read_bytes()
        except OSError as error:
            file.close()
            raise self._unwritable(error) from error

    def _rewrite(self, lines: Sequence[Mapping[str, Any]]) -> IO[bytes]:
        """Replace the file by these lines and open it. The first lock is held, too, until `close`."""
        try:
            write_atomically(self.path, b"".join(map(_encoded, lines)))
            return open_locked(self.path, "ab", "wait for it, or give --out another name")
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError | ValueError) -> ConfigError:
        why = getattr(error, "strerror", None) or "the path can't be used"
        return ConfigError(f"replies can't be written to {str(self.path)!r}: {why}; the same command continues")


def _read(path: Path, data: bytes, keys: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Parse the lines of an earlier call, without an incomplete last one. Raises InputError for another file."""
    *lines, cut = data.decode("utf-8", "replace").split("\n")
    if cut and not lines and not cut.startswith('{"row": '):
        lines = [cut]
    found: dict[int, dict[str, Any]] = {}
    for number, text in enumerate(lines, 1):
        line = _parsed(text)
        row = line.get("row")
        if not isinstance(row, int) or not 0 <= row < len(keys) or line.get("key") != keys[row]:
            raise InputError(
                f"line {number} of {str(path)!r} is not a reply of this recipe to a row of this data; "
                "give --out another name"
            )
        found[row] = {"status": "failed", **line}
    return found


def _parsed(text: str) -> dict[str, Any]:
    try:
        line = parse_json(text)
    except JSONProblem:
        return {}
    return line if isinstance(line, dict) else {}


def _encoded(line: Mapping[str, Any]) -> bytes:
    return mend(json.dumps(line, ensure_ascii=False) + "\n").encode()
