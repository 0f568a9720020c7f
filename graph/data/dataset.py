"""Read data sets from JSON Lines, JSON, CSV, the Hugging Face hub, or Python."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from cachegraph.common.json_text import JSONProblem, parse_json
from cachegraph.errors import ConfigError, InputError

__all__ = ["FILES", "RawExample", "Rows", "data_place", "read_rows"]

Rows = str | PathLike[str] | Iterable[Mapping[str, Any]]
FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")


class RawExample(NamedTuple):
    """One row, and its position for error messages."""

    place: str
    values: Mapping[str, Any]


def read_rows(source: Rows, split: str = "test") -> list[RawExample]:
    """Read all rows. A name that is not a file is a hub data set: `owner/name`, `owner/name:config@split`.

    `split` is the default hub split.

    Raises InputError with file and line, or ConfigError if a library is missing.
    """
    if isinstance(source, str | PathLike):
        place = data_place(source) if isinstance(source, str) else Path(source)
        rows = list(_file(place) if isinstance(place, Path) else _hub(place, split))
        name = place.name if isinstance(place, Path) else place
    else:
        rows = [RawExample(f"row {number}", values) for number, values in enumerate(source, 1)]
        name = "the data"
    if not rows:
        raise InputError(f"{name!r} has no rows; give it one question a row")
    for row in rows:
        if not isinstance(row.values, Mapping):
            raise InputError(f"{row.place}: a row is a mapping from columns to values, not {_kind(row.values)}")
    return rows


def data_place(source: str, folder: Path = Path()) -> Path | str:
    """The path of a data file, relative to `folder`, or the name of a hub data set.

    Raises InputError if a path can't have that name.
    """
    try:
        path = folder / Path(source).expanduser()
        if path.suffix.lower() not in FILES:
            path.stat()  # `exists` hides from Python 3.14 on why a path can't be used
    except (FileNotFoundError, NotADirectoryError):
        return source
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown user's home, a NUL
        raise InputError(f"the data's path {source!r} can't be used ({error}); check it") from error
    return path


def _file(path: Path) -> Iterator[RawExample]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name!r} is not UTF-8 text (byte {error.start})") from error
    except (OSError, ValueError) as error:  # a NUL in the name raises ValueError
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the data can't be read from {str(path)!r}: {reason}; check the path") from error
    match path.suffix.lower():
        case ".csv":
            yield from _table(path.name, text, ",")
        case ".tsv":
            yield from _table(path.name, text, "\t")
        case ".json":
            values = _json(text, path.name)
            if not isinstance(values, list):
                raise InputError(f"{path.name!r} must hold a list of rows, not {_kind(values)}")
            yield from (RawExample(f"{path.name}, row {number}", value) for number, value in enumerate(values, 1))
        case _:
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    yield RawExample(f"{path.name}, line {number}", _json(line, f"{path.name}, line {number}"))


def _json(text: str, place: str) -> Any:
    try:
        return parse_json(text)
    except JSONProblem as error:
        raise InputError(f"{place}: this is not JSON ({error})") from error


def _table(name: str, text: str, delimiter: str) -> Iterator[RawExample]:
    reader = csv.DictReader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for values in reader:
            place = f"{name}, line {reader.line_num}"
            if None in values or None in values.values():
                raise InputError(
                    f"{place}: the row has more or fewer cells than the {len(reader.fieldnames or ())} columns"
                )
            yield RawExample(place, values)
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.reader.line_num}: this is not CSV ({error})") from error


def _hub(source: str, usual: str) -> Iterator[RawExample]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError(
            f"there is no file {source!r}, and to read it from the hub the extra is missing: "
            "pip install 'cachegraph[eval]'"
        ) from error
    rest, _, split = source.partition("@")
    name, _, config = rest.partition(":")
    try:
        rows = load_dataset(name, config or None, split=split or usual)
    except ConnectionError as error:
        raise InputError(
            f"there is no file {source!r}, and the hub can't be reached for a data set of that name ({error}); "
            "go online once, or write the rows to a .jsonl file and name that"
        ) from error
    except Exception as error:  # convert the library's many errors, including network errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"there is no file {source!r}, and the hub gives no such data set ({reason}); "
            "a data set is called owner/name, owner/name:config or owner/name:config@split"
        ) from error
    for number, values in enumerate(rows, 1):
        yield RawExample(f"{source}, row {number}", values)


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "a mapping", str: "a text", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)
