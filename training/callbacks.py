"""Callbacks of a training: the interface, the log on disk, and trackers such as TensorBoard. Imports no torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cachegraph.errors import ConfigError, FuserError

__all__ = ["NullCallback", "TrainingCallback", "TrainingLog", "check_trackers", "with_trackers"]


class TrainingCallback(Protocol):
    """What a training reports while it runs."""

    def on_phase(self, what: str, done: int, total: int) -> None:
        """Called during work outside the steps: encoding examples, the ridge start, a plan's trial steps."""

    def on_step(self, step: int, steps: int, numbers: Mapping[str, float]) -> None:
        """Called after a step, with losses, gradient norm, learning rate and tokens per second."""

    def on_eval(self, step: int, numbers: Mapping[str, float], kept: bool) -> None:
        """Called after a dev evaluation; `kept`: the fuser has these weights unless a later one replaces them."""


class NullCallback:
    """Ignores everything."""

    def on_phase(self, what: str, done: int, total: int) -> None: ...
    def on_step(self, step: int, steps: int, numbers: Mapping[str, float]) -> None: ...
    def on_eval(self, step: int, numbers: Mapping[str, float], kept: bool) -> None: ...


class TrainingLog:
    """log.jsonl: one line per step and per dev evaluation, written before the next step begins."""

    def __init__(self, path: Path, after: int | None):
        """Keep the lines up to step `after`, or none. A killed run's lines after its last checkpoint are dropped."""
        self._path = path
        kept = [line for line in _lines(path) if _step(line) <= after] if after is not None else []
        self._write("".join(f"{line}\n" for line in kept), "w")

    def add(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        self._write(json.dumps({"kind": kind, "step": step, **numbers}) + "\n", "a")

    def _write(self, text: str, mode: str) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open(mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise FuserError(f"the log {str(self._path)!r} can't be written ({error.strerror}); make room") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except Exception:  # an incomplete or otherwise damaged line
        return float("inf")


@contextmanager
def with_trackers(
    callback: TrainingCallback, names: Sequence[str], run: Path, about: Mapping[str, Any]
) -> Iterator[TrainingCallback]:
    """`callback`, extended by accelerate's trackers of these names: tensorboard (logs below `run`), wandb.

    Raises ConfigError if one is unknown or not installed.
    """
    trackers = [_tracker(name, run) for name in names]
    for tracker in trackers:
        tracker.store_init_configuration({key: str(value) for key, value in about.items()})
    try:
        yield _TrackerCallback(callback, trackers) if trackers else callback
    finally:
        for tracker in trackers:
            tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError if one of these is unknown or not installed."""
    for name in names:
        _tracker(name, Path(), only_check=True)


class _TrackerCallback:
    def __init__(self, callback: TrainingCallback, trackers: Sequence[Any]):
        self._watch = callback
        self._trackers = trackers

    def on_phase(self, what: str, done: int, total: int) -> None:
        self._watch.on_phase(what, done, total)

    def on_step(self, step: int, steps: int, numbers: Mapping[str, float]) -> None:
        self._watch.on_step(step, steps, numbers)
        self._log("train", step, numbers)

    def on_eval(self, step: int, numbers: Mapping[str, float], kept: bool) -> None:
        self._watch.on_eval(step, numbers, kept)
        self._log("dev", step, numbers)

    def _log(self, part: str, step: int, numbers: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log({f"{part}/{name}": value for name, value in numbers.items()}, step=step)


def _tracker(name: str, run: Path, only_check: bool = False) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, WandBTracker
    from accelerate.utils import is_tensorboard_available, is_wandb_available

    PartialState()  # trackers write on the main process only, and ask this which one that is
    known: dict[str, tuple[Any, Any]] = {
        "tensorboard": (is_tensorboard_available, lambda: TensorBoardTracker("tensorboard", run)),
        "wandb": (is_wandb_available, lambda: WandBTracker(run.name)),
    }
    if name not in known:
        raise ConfigError(f"there is no tracker {name!r}; there are {', '.join(map(repr, known))}")
    installed, make = known[name]
    if not installed():
        raise ConfigError(f"the tracker {name!r} is not installed: pip install {name}")
    if only_check:
        return None
    tracker = make()
    tracker.start()
    return tracker
