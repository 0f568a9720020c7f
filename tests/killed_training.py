"""A training that the system kills, as it writes a record of its log. Runs in a process of its own."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cachegraph.training.callbacks import TrainingLog
from cachegraph.training.train import train

__all__ = ["Moment", "records", "train_until_killed"]

Moment = Literal["before", "half", "after"]


def records(run: Path) -> int:
    """The number of lines in the log of a run."""
    log = run / "log.jsonl"
    return len(log.read_bytes().splitlines()) if log.exists() else 0


def train_until_killed(record: int, moment: Moment, spec: Any, **options: Any) -> None:
    """Train, and be killed before or after this record (from 1) is written, or in the middle of it."""
    write_record = TrainingLog.add

    def add(self: TrainingLog, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        last = records(self._path.parent) + 1 == record
        if last and moment == "half":
            self._write('{"kind": "', "a")
        if not last or moment == "after":
            write_record(self, kind, step, numbers)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    TrainingLog.add = add  # type: ignore[method-assign]
    train(spec, **options)
