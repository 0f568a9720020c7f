"""What a run leaves in files while it goes on: its events, one JSON object a line."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cachegraph.errors import ConfigError
from cachegraph.graph.events import Event

__all__ = ["Record", "recording"]

Record = Callable[[Event], None]


@contextmanager
def recording(events: Path | None) -> Iterator[list[Record]]:
    """What to call with every event. Raises ConfigError at once where a file can't be written."""
    if events is None:
        yield []
        return
    with _opened(events) as file:
        yield [lambda event: _write_line(file, event)]


def _write_line(file: IO[str], event: Event) -> None:
    file.write(json.dumps(event.to_dict(), ensure_ascii=False) + "\n")
    file.flush()  # somebody may be reading along


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't write {str(path)!r}: {error.strerror}; choose another place") from error
