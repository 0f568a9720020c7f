"""The results file: a header, then one line for each example that is done, written at once, so that nothing is lost.

A file whose header is of another comparison (other recipe, data, models, machine or settings) is left alone, and a new
one is begun beside it.
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
    """An open results file, or with `path` None nothing but a memory. `records` are those that were there already."""

    def __init__(self, path: Path | None, key: str, header: Mapping[str, Any]):
        self.records: dict[tuple[str, int, int], ExampleRecord] = {}
        self.path = path
        self._file: IO[str] | None = None
        if path is None:
            return
        self.path, lines, self._file = _own_file(path, key)
        try:
            self._begin(key, header, lines)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, key: str, header: Mapping[str, Any], lines: list[str]) -> None:
        assert self.path is not None
        for number, line in enumerate(lines[1:], 2):
            record = _record(self.path, number, line)
            if record.error is None:  # what failed is tried again
                self.records[record.key] = record
        if not lines:
            self._write(json.dumps({"kind": "header", "schema_version": 1, "key": key, **header}))

    def add(self, record: ExampleRecord) -> None:
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


def _own_file(path: Path, key: str) -> tuple[Path, list[str], IO[str]]:
    """The file to go on with, its lines, and the file open; another name, with the key, where `path` is another's."""
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
            raise InputError(f"{str(path)!r} is no results file of cachegraph; give --out another name")
    except BaseException:
        file.close()
        raise
    return path, lines, file


def _key_of(path: Path) -> str | None:
    """The key in a results file's header; None where there is no file, or none with a whole header."""
    try:
        with path.open("rb") as file:
            return _key(file.readline().decode("utf-8", "replace"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"the results file {str(path)!r} can't be read: {error.strerror or error}") from error


def _whole_lines(path: Path) -> list[str]:
    """The file's lines; a last one that was torn by a crash is cut off."""
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
    if data and not lines:  # not even a header was finished, or this is somebody's file
        if not data.startswith(b'{"kind": "header"'):
            return [data.decode("utf-8", "replace")]
        os.truncate(path, 0)
    return lines


def _key(line: str) -> str | None:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, nested beyond measure, or a number of too many digits
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
            f"{str(path)!r}, line {number}: this is no result that this version can read; give --out another name"
        ) from error


def _unwritable(path: Path | None, error: OSError) -> ConfigError:
    return ConfigError(
        f"results can't be written to {str(path)!r}: {error.strerror or error}; what is finished stays there, "
        "and the same command goes on from it"
    )
