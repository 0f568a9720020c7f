"""Verdicts of the check at load, kept from one start to the next.

A verdict holds for one model on one machine: its weights, the versions of torch, transformers and this program, the
device, and what the CPU and the kernels can do.
"""

import hashlib
import sys
from functools import cache
from pathlib import Path

import torch
import transformers

from cachegraph import __version__
from cachegraph.common.json_cache import KeptJson, file_facts

from ...kernels import backends
from ..weight_files import fingerprint, weight_files
from .verdict import Verdict

__all__ = ["VerdictCache"]

_FORMAT = 1


class VerdictCache:
    """The verdict on one model. `how` is all that the caller chose: dtype, weights, devices."""

    def __init__(self, folder: Path, how: object):
        files = map(file_facts, weight_files(folder))
        facts = [
            _FORMAT,
            *_versions(),
            repr(how),
            *(fact for backend in backends() for fact in backend.facts()),
            fingerprint(folder),
            *files,
        ]
        self._kept = KeptJson("checks", facts)

    def read(self) -> Verdict | None:
        """The kept verdict, if there is a whole one."""
        try:
            return Verdict.from_dict(self._kept.read())
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            return None

    def write(self, verdict: Verdict) -> None:
        """Keep a verdict."""
        reason = verdict.why_no_kernels
        if reason is None or not any(backend.is_temporary(reason) for backend in backends()):
            self._kept.write(verdict.to_dict())


def _versions() -> list[str]:
    return [__version__, _own_code(), torch.__version__, transformers.__version__, sys.version]


@cache
def _own_code() -> str:
    """A hash of the engine's sources: between releases the version stays."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    sources = (path for path in root.rglob("*.*") if path.suffix in (".py", ".h", ".cpp"))
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()
