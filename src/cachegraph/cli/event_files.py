"""What runs leave in files: their events, one JSON object a line, while they go on; a trace, once they are over."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO

from cachegraph.common.file_lock import lock_file
from cachegraph.errors import ConfigError
from cachegraph.graph.run.events import Event, TextDelta

from .standard_streams import TolerantStream

__all__ = ["Record", "Recorder", "recording"]

Record = Callable[[Event], None]


class Recorder:
    """Takes the events of one run after another. A file that gets full costs the file, not the run: see `check`."""

    def __init__(self, events: "_File | None", trace: "_File | None"):
        self._events = events
        self._trace = trace
        self._keeps = trace is not None
        self.runs: list[tuple[str, list[Event]]] = []

    def begin(self, title: str) -> Record:
        """What to call with every event of the run that begins now."""
        told: list[Event] = []
        self.runs.append((title, told))

        def record(event: Event) -> None:
            if self._events is not None:
                self._events.write(json.dumps(event.to_dict(), ensure_ascii=False) + "\n")
                self._events.flush()  # somebody may be reading along
            if self._keeps and not isinstance(event, TextDelta):
                told.append(event)

        return record

    def check(self) -> None:
        """Raises ConfigError where a file could not be written whole."""
        for file in (self._events, self._trace):
            if file is not None and file.trouble is not None:
                raise ConfigError(f"{str(file.path)!r} is not whole: {file.trouble}; choose another place")


class _File(TolerantStream):
    def __init__(self, path: Path):
        super().__init__(_opened(path))
        self.path = path


@contextmanager
def recording(events: Path | None, trace: Path | None) -> Iterator[Recorder]:
    """Raises ConfigError at once where a file can't be written. The trace is written however the runs end."""
    with ExitStack() as files:
        lines = files.enter_context(closing(_File(events))) if events is not None else None
        whole = files.enter_context(closing(_File(trace))) if trace is not None else None
        recorder = Recorder(lines, whole)
        try:
            yield recorder
        finally:
            if whole is not None:
                from cachegraph.graph.tracing.chrome import chrome_trace

                json.dump(chrome_trace(recorder.runs), whole, ensure_ascii=False)


def _opened(path: Path) -> IO[str]:
    try:
        file = path.open("a", encoding="utf-8", errors="replace")  # emptied only when it is ours
        try:
            lock_file(file, path, "choose another place")
            if path.is_file():
                file.truncate(0)
        except BaseException:
            file.close()
            raise
        return file
    except OSError as error:
        raise ConfigError(f"can't write {str(path)!r}: {error.strerror}; choose another place") from error
