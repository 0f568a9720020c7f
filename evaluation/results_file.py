"""The results file of a comparison: a header, then one line per finished example, flushed at once.

A file whose header names another comparison (other recipe, data, models, machine or settings) is left as it is. The
comparison then writes to a new file beside it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from cachegraph.common.file_lock import lock_file
from cachegraph.errors import ConfigError, InputError

from .records import ExampleRecord

__all__ = ["ResultsFile"]


class ResultsFile:
    """An open, locked results file. With `path` None, records are held in memory only.

    `records` maps (variant, seed, index) to the records, those of an earlier call included.
    """

    def __init__(self, path: Path | None, key: str, header: Mapping[str, Any]):
        self.records: dict[tuple[str, int, int], ExampleRecord] = {}
        self.path = path
        self._file: IO[str] | None = None
        if path is None:
            return
        self.path, lines, self._file = _open_own(path, key)
        try:
            self._load(key, header, lines)
        except BaseException:
            self._file.close()
            raise

    def _load(self, key: str, header: Mapping[str, Any], lines: list[str]) -> None:
        assert self.path is not None
        for number, line in enumerate(lines[1:], 2):
            record = _record(self.path, number, line)
            if record.error is None:  # failed examples run again
                self.records[record.key] = record
        if not lines:
            self._write(json.dumps({"kind": "header", "schema_version": 1, "key": key, **header}))

    def add(self, record: ExampleRecord) -> None:
        """Write a record. It is in the file when this returns. Raises ConfigError if it can't be written."""
        self.records[record.key] = record
        self._write(record.to_line())

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                raise _unwritable(self.path, error) from error

    def _write(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error


def _open_own(path: Path, key: str) -> tuple[Path, list[str], IO[str]]:
    """This comparison's file, its lines, and the open file. If `path` is another's, its name gets the key appended."""
    own = _key_of(path)
    if own is not None and own != key:
        path = path.with_name(f"{path.stem}-{key[:8]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        lock_file(file, path, "wait for it, or give --out another name")
        lines = _whole_lines(path)
        if lines and _key(lines[0]) != key:
            raise InputError(f"{str(path)!r} is not a results file of cachegraph; give --out another name")
    except BaseException:
        file.close()
        raise
    return path, lines, file


def _key_of(path: Path) -> str | None:
    """The key in a results file's header. None if there is no file, or its header is incomplete."""
    try:
        with path.open("rb") as file:
            return _key(file.readline().decode("utf-8", "replace"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"the results file {str(path)!r} can't be read: {error.strerror or error}") from error


def _whole_lines(path: Path) -> list[str]:
    """The file's lines. Truncates an incomplete last line, which a crash leaves."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"the results file {str(path)!r} can't be read: {error.strerror or error}") from error
    end = data.rfind(b"\n") + 1
    lines = data[:end].decode("utf-8", "replace").split("\n")[:-1]
    if lines and _key(lines[0]) is not None and end < len(data):
        try:
            with path.open("r+b") as file:
                file.truncate(end)
        except OSError as error:
            raise _unwritable(path, error) from error
    if data and not lines:  # an incomplete header, or a file of another program
        if not data.startswith(b'{"kind": "header"'):
            return [data.decode("utf-8", "replace")]
        os.truncate(path, 0)
    return lines


def _key(line: str) -> str | None:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, nested too deeply, or a number with too many digits
        return None
    if not isinstance(header, dict) or header.get("kind") != "header" or header.get("schema_version") != 1:
        return None
    key = header.get("key")
    return key if isinstance(key, str) else None


def _record(path: Path, number: int, line: str) -> ExampleRecord:
    try:
        return ExampleRecord.model_validate_json(line)
    except ValidationError as error:
        raise InputError(
            f"{str(path)!r}, line {number}: this version can't read this result; give --out another name"
        ) from error


def _unwritable(path: Path | None, error: OSError) -> ConfigError:
    return ConfigError(
        f"results can't be written to {str(path)!r}: {error.strerror or error}; finished results stay there, "
        "and the same command continues from them"
    )
