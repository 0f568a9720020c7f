"""The models of this process: each loaded once, for as long as someone uses it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter

from cachegraph.common.abandoned_threads import acquire_in_thread
from cachegraph.common.folder_escapes import why_outside
from cachegraph.errors import ModelError

from .catalogue import StoredModel, ensure, place
from .engine import Engine
from .spec import ModelSpec

__all__ = ["Lease", "lease", "leased"]


@dataclass(eq=False)
class _Entry:
    """One loaded model, or one that is being loaded."""

    loading: threading.Lock = field(default_factory=threading.Lock)
    engine: Engine | None = None
    loaded: float = 0.0  # when, by the clock
    users: int = 0


_Key = tuple[str, str]
_entries: dict[_Key, _Entry] = {}
_lock = threading.Lock()  # protects _entries and the counts in them
_process: int | None = None  # that has loaded the first model


@dataclass(eq=False)
class Lease:
    """The right to use an engine; `release` gives it back, and the last one back unloads the model."""

    engine: Engine
    _key: _Key
    waited: bool = False  # the engine was loaded while this lease was being taken

    def release(self) -> None:
        if _process != os.getpid():  # in a forked process it is not this one's to unload
            return
        with _lock:
            entry = _entries[self._key]
            entry.users -= 1
            if entry.users:
                return
            del _entries[self._key]
        self.engine.close()


async def lease(spec: ModelSpec, folder: Path, *, allow_paths: bool = True) -> Lease:
    """The engine of a model, loaded now if it is not yet (and fetched first, if this machine does not have it).

    `folder` is where relative paths start; without `allow_paths`, nothing outside it is read. Raises ModelError or
    ConfigError.
    """
    return await acquire_in_thread(partial(_lease, spec, folder, allow_paths=allow_paths), Lease.release, abandon=True)


@contextmanager
def leased(spec: ModelSpec, folder: Path, *, recheck: bool = False) -> Iterator[Engine]:
    """The same for code that is not asynchronous, given back at the end of the block.

    `recheck`: check a model that is loaded now even if an earlier verdict on it is kept.
    """
    taken = _lease(spec, folder, recheck)
    try:
        yield taken.engine
    finally:
        taken.release()


def _check_process(spec: ModelSpec) -> None:
    """Raise ModelError in a fork of a process that has loaded models: torch's threads and the locks here stay there."""
    global _process
    from .engine import FORKED

    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise ModelError(FORKED.format(f"another model than {spec.source!r}, or this one,"))


def _lease(spec: ModelSpec, folder: Path, recheck: bool = False, allow_paths: bool = True) -> Lease:
    began = perf_counter()
    _check_process(spec)
    check_place = partial(_check_place, spec, folder, allow_paths)
    check_place()
    stored = ensure(spec, folder)
    placed = spec.without_placement().model_copy(
        update={"source": "", "revision": None, "chat_template": stored.chat_template}
    )
    key = (str(stored.folder), placed.model_dump_json())
    with _lock:
        entry = _entries.setdefault(key, _Entry())
        entry.users += 1
    try:
        with entry.loading:
            if entry.engine is None:
                check_place()  # fetching or waiting may have taken minutes
                entry.engine = _load(spec, stored, recheck)
                entry.loaded = perf_counter()
    except BaseException:
        with _lock:
            entry.users -= 1
            if not entry.users and _entries.get(key) is entry:
                del _entries[key]
        raise
    return Lease(entry.engine, key, entry.loaded >= began)


def _check_place(spec: ModelSpec, folder: Path, allow_paths: bool) -> None:
    """Raise ModelError where a model has to be in the recipe's folder and is not. Links may change after its check."""
    reason = None if allow_paths else why_outside(folder.resolve(), spec.source)
    if reason is not None:
        raise ModelError(f"the model {spec.source!r} {reason}; move it there, or allow it with --allow-paths")


def _load(spec: ModelSpec, stored: StoredModel, recheck: bool) -> Engine:
    import torch

    from .model.load import load_model

    placement = place(stored.folder, spec)
    return Engine(
        load_model(
            stored.folder,
            name=stored.name,
            identity=stored.identity,
            dtype=getattr(torch, placement.dtype),
            weights=spec.weights,
            device=placement.device,
            device_map=spec.device_map,
            chat_template=stored.chat_template,
            checks="again" if recheck else "once",
        ),
        spec.kv_memory,
    )
