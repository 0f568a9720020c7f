"""Verdicts of the check at load, kept from one start to the next.

A verdict holds for one model on one machine: its weights, the versions of torch, transformers and this program, the
device, and what the CPU and the kernels can do. Any other of these is another file. A file that can't be read is no
verdict, and a folder that can't be written to keeps none.
"""

import hashlib
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from cachegraph import __version__

from .cpu.build import compiler, cpu_features, failure, switched_off
from .models.weights import fingerprint, weight_files
from .places import home
from .verdict import Verdict

__all__ = ["VerdictCache"]

_FORMAT = 1
_KEPT = 256  # files; the oldest go first
_SAMPLES = 64  # of a file of weights, at even distances
_SAMPLE = 4096  # bytes


class VerdictCache:
    """Where the verdict on one model lies. `how` is all that the caller chose: dtype, weights, devices."""

    def __init__(self, folder: Path, how: object):
        facts = [
            _FORMAT,
            *_versions(),
            repr(how),
            *_machine(),
            fingerprint(folder),
            *map(_file_facts, weight_files(folder)),
        ]
        self._key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self._path = home() / "checks" / f"{self._key[:32]}.json"

    def read(self) -> Verdict | None:
        """The kept verdict, if there is a whole one."""
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            return Verdict.from_dict(kept["verdict"]) if kept["key"] == self._key else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            logging.getLogger("cachegraph").debug("the kept check %s can't be read: %s", self._path, error)
            return None

    def write(self, verdict: Verdict) -> None:
        """Keep a verdict, whole or not at all."""
        if verdict.why_no_kernels is not None and verdict.why_no_kernels == failure():
            return  # the next process may succeed
        part = self._path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"key": self._key, "verdict": verdict.to_dict()}, indent=1), encoding="utf-8")
            part.replace(self._path)
            self._sweep()
        except OSError as error:
            logging.getLogger("cachegraph").debug("the check %s can't be kept: %s", self._path, error)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Leave the newest files."""
        files = sorted(self._path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in files[:-_KEPT]:
            path.unlink(missing_ok=True)


def _versions() -> list[str]:
    return [__version__, _own_code(), torch.__version__, transformers.__version__, sys.version]


@cache
def _own_code() -> str:
    """A hash of the engine's sources: between releases the version stays."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("*.py"), *(root / "cpu").glob("*.*"), *(root / "gpu").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _machine() -> Iterator[str]:
    yield cpu_features()
    yield str(compiler() if not switched_off() else None)
    for index in range(torch.cuda.device_count()):
        yield repr((torch.cuda.get_device_properties(index), torch.version.cuda, torch.version.hip))


def _file_facts(path: Path) -> list[Any]:
    """What changes with a file's contents: its times and size, and samples for where many files have the same."""
    stat = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(sample * max(stat.st_size - _SAMPLE, 0) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return [path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, digest.hexdigest()]
