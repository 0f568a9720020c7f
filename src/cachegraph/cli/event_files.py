"""Files that runs write: events as JSON Lines while they run, and a trace when they are over."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO

from cachegraph.common.file_lock import lock_file
from cachegraph.errors import ConfigError
from cachegraph.graph.run.events import Event, TextDelta

from .standard_streams import TolerantStream

__all__ = ["EventRecorder", "OnEvent", "record_events"]

OnEvent = Callable[[Event], None]


class EventRecorder:
    """Writes the events of one run after another. A failing write does not stop the run; `check` reports it."""

    def __init__(self, events: "_OutputFile | None", trace: "_OutputFile | None"):
        self._events = events
        self._trace = trace
        self._keeps = trace is not None
        self.runs: list[tuple[str, list[Event]]] = []

    def start_run(self, title: str) -> OnEvent:
        """Start a run, and return the function to call with each of its events."""
        kept: list[Event] = []
        self.runs.append((title, kept))

        def record(event: Event) -> None:
            if self._events is not None:
                self._events.write(json.dumps(event.to_dict(), ensure_ascii=False) + "\n")
                self._events.flush()  # another program may read along
            if self._keeps and not isinstance(event, TextDelta):
                kept.append(event)

        return record

    def check(self) -> None:
        """Raise ConfigError if a file could not be written completely."""
        for file in (self._events, self._trace):
            if file is not None and file.trouble is not None:
                raise ConfigError(f"{str(file.path)!r} is incomplete: {file.trouble}; choose another file")


class _OutputFile(TolerantStream):
    def __init__(self, path: Path):
        super().__init__(_opened(path))
        self.path = path


@contextmanager
def record_events(events: Path | None, trace: Path | None) -> Iterator[EventRecorder]:
    """Open both files. Raises ConfigError at once if one can't be written. Writes the trace however the runs end."""
    with ExitStack() as files:
        lines = files.enter_context(closing(_OutputFile(events))) if events is not None else None
        trace_file = files.enter_context(closing(_OutputFile(trace))) if trace is not None else None
        recorder = EventRecorder(lines, trace_file)
        try:
            yield recorder
        finally:
            if trace_file is not None:
                from cachegraph.graph.tracing.chrome import chrome_trace

                json.dump(chrome_trace(recorder.runs), trace_file, ensure_ascii=False)


def _opened(path: Path) -> IO[str]:
    try:
        file = path.open("a", encoding="utf-8", errors="replace")  # truncated only once it is locked
        try:
            lock_file(file, path, "choose another file")
            if path.is_file():
                file.truncate(0)
        except BaseException:
            file.close()
            raise
        return file
    except OSError as error:
        raise ConfigError(f"can't write {str(path)!r}: {error.strerror}; choose another file") from error
