"""Verdicts of the check at load, kept from one start to the next.

A verdict holds for one model on one machine: its weights, the versions of torch, transformers and this program, the
device, and what the CPU and the kernels can do.
"""

import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
import transformers

from cachegraph import __version__
from cachegraph.common.json_cache import KeptJson, file_facts

from ..cpu.build import compiler, cpu_features, failure, switched_off
from .verdict import Verdict
from .weight_files import fingerprint, weight_files

__all__ = ["VerdictCache"]

_FORMAT = 1


class VerdictCache:
    """The verdict on one model. `how` is all that the caller chose: dtype, weights, devices."""

    def __init__(self, folder: Path, how: object):
        files = map(file_facts, weight_files(folder))
        facts = [_FORMAT, *_versions(), repr(how), *_machine(), fingerprint(folder), *files]
        self._kept = KeptJson("checks", facts)

    def read(self) -> Verdict | None:
        """The kept verdict, if there is a whole one."""
        try:
            return Verdict.from_dict(self._kept.read())
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            return None

    def write(self, verdict: Verdict) -> None:
        """Keep a verdict."""
        if verdict.why_no_kernels is None or verdict.why_no_kernels != failure():  # the next process may compile them
            self._kept.write(verdict.to_dict())


def _versions() -> list[str]:
    return [__version__, _own_code(), torch.__version__, transformers.__version__, sys.version]


@cache
def _own_code() -> str:
    """A hash of the engine's sources: between releases the version stays."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    sources = (path for path in root.rglob("*.*") if path.suffix in (".py", ".h", ".cpp"))
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _machine() -> Iterator[str]:
    yield cpu_features()
    yield str(compiler() if not switched_off() else None)
    for index in range(torch.cuda.device_count()):
        yield repr((torch.cuda.get_device_properties(index), torch.version.cuda, torch.version.hip))
