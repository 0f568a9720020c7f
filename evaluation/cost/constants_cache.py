"""Constants in the cache folder, kept by machine, versions, models and fuser. No torch, and no model is loaded."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cachegraph import __version__
from cachegraph.channels.fusers.fuser_folder import find_fuser
from cachegraph.common.json_cache import KeptJson, file_facts
from cachegraph.engine.catalogue import find
from cachegraph.engine.diagnostics import installed, processor
from cachegraph.engine.model.weight_files import weight_files
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import FuserError, ModelError

from .constants import EdgeConstants, ModelConstants

__all__ = ["KeptEdge", "KeptModel", "machine_name"]

FORMAT = 1
FOLDER = "costs"
C = TypeVar("C", bound=BaseModel)


def machine_name() -> str:
    """The processor, and how many of its cores this process may use."""
    return f"{processor()}, {_cores()} cores"


class KeptModel:
    """A model's constants. A model that is not on this disk has none."""

    def __init__(self, spec: ModelSpec, folder: Path):
        facts = _model_facts(spec, folder)
        self._kept = KeptJson(FOLDER, [*_machine_facts(), *facts]) if facts is not None else None

    def read(self) -> ModelConstants | None:
        return _read(self._kept, ModelConstants)

    def write(self, constants: ModelConstants) -> None:
        if self._kept is not None:
            self._kept.write(constants.model_dump(mode="json"))


class KeptEdge:
    """The constants of an edge between two models through a fuser, or through none."""

    def __init__(self, sharer: ModelSpec, receiver: ModelSpec, fuser: str | None, form: str, folder: Path):
        ends = [_model_facts(sharer, folder), _model_facts(receiver, folder)]
        known = all(end is not None for end in ends)
        facts = [*_machine_facts(), form, *ends, _fuser_facts(fuser, folder)]
        self._kept = KeptJson(FOLDER, facts) if known else None

    def read(self) -> EdgeConstants | None:
        return _read(self._kept, EdgeConstants)

    def write(self, constants: EdgeConstants) -> None:
        if self._kept is not None:
            self._kept.write(constants.model_dump(mode="json"))


def _read(kept: KeptJson | None, kind: type[C]) -> C | None:
    value: Any = kept.read() if kept is not None else None
    try:
        return None if value is None else kind.model_validate(value)
    except ValidationError:  # of another version
        return None


def _machine_facts() -> list[Any]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CACHEGRAPH_KERNELS")
    settings: Mapping[str, str | None] = {name: os.environ.get(name) for name in names}
    versions = [__version__, installed("torch"), installed("transformers"), platform.python_version()]
    return [FORMAT, *versions, platform.machine(), processor(), _cores(), dict(settings)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _model_facts(spec: ModelSpec, folder: Path) -> list[Any] | None:
    """What a model's speed depends on. None if the model is not on this disk."""
    try:
        stored = find(spec, folder)
        files = [] if stored is None else [file_facts(path) for path in weight_files(stored.folder)]
    except (ModelError, OSError):
        return None
    if stored is None:
        return None
    how = spec.model_dump(mode="json", include={"dtype", "weights", "device", "device_map"})
    return [stored.name, stored.identity, how, files]


def _fuser_facts(fuser: str | None, folder: Path) -> list[Any]:
    if fuser is None:
        return []
    try:
        card = find_fuser(fuser, folder) / "card.json"
        return [fuser, file_facts(card) if card.is_file() else None]
    except (FuserError, OSError):
        return [fuser, None]
