"""The results file: a header, then one line for each example that is done, written at once, so that nothing is lost.

A file whose header is of another comparison (other recipe, data, models, machine or settings) is left alone, and a new
one is begun beside it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from cachegraph.errors import ConfigError, InputError

from .records import Record

__all__ = ["Journal"]


class Journal:
    """An open results file, or with `path` None nothing but a memory. `records` are those that were there already."""

    def __init__(self, path: Path | None, key: str, header: Mapping[str, Any]):
        self.records: dict[tuple[str, int, int], Record] = {}
        self.path = path
        self._file: IO[str] | None = None
        if path is None:
            return
        self.path, lines = _own_file(path, key)
        for number, line in enumerate(lines[1:], 2):
            record = _record(self.path, number, line)
            if record.error is None:  # what failed is tried again
                self.records[record.key] = record
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self.path, error) from error
        if not lines:
            try:
                self._write(json.dumps({"kind": "header", "schema_version": 1, "key": key, **header}))
            except ConfigError:
                self.close()
                raise

    def add(self, record: Record) -> None:
        """Keep a record; it is in the file when this returns."""
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


def _own_file(path: Path, key: str) -> tuple[Path, list[str]]:
    """The file to go on with, and its lines; a name with the key's first letters where `path` is another's."""
    lines = _whole_lines(path)
    if lines and _key(lines[0]) != key:
        if _key(lines[0]) is None:
            raise InputError(f"{str(path)!r} is no results file of cachegraph; give --out another name")
        beside = path.with_name(f"{path.stem}-{key[:8]}{path.suffix}")
        return beside, _whole_lines(beside)
    return path, lines


def _whole_lines(path: Path) -> list[str]:
    """The file's lines; a last one that was torn by a crash is cut off."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
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
    if data and not lines:  # not even a header was finished, or this is somebody's file
        if not data.startswith(b'{"kind": "header"'):
            return [data.decode("utf-8", "replace")]
        path.unlink()
    return lines


def _key(line: str) -> str | None:
    try:
        header = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(header, dict) or header.get("kind") != "header" or header.get("schema_version") != 1:
        return None
    key = header.get("key")
    return key if isinstance(key, str) else None


def _record(path: Path, number: int, line: str) -> Record:
    try:
        return Record.model_validate_json(line)
    except ValidationError as error:
        raise InputError(
            f"{str(path)!r}, line {number}: this is no result that this version can read; give --out another name"
        ) from error


def _unwritable(path: Path | None, error: OSError) -> ConfigError:
    return ConfigError(
        f"results can't be written to {str(path)!r}: {error.strerror or error}; what is finished stays there, "
        "and the same command goes on from it"
    )
