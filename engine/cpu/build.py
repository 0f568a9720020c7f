"""Compile the kernels for the CPU that will run them, once, and load them.

A compiler is all that is needed: no headers of Python or torch. What was compiled is kept in the home folder under a
name that changes with the source, the compiler and the CPU. Without a compiler everything works, slower.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import threading
from functools import cache
from pathlib import Path

import filelock

from cachegraph.common.paths import home

from ..kernels import SWITCH, switched_off

__all__ = ["Kernels", "compiler", "cpu_features", "failure", "kernels"]

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++17", "-shared", "-fPIC", "-pthread")
_SECONDS = 300  # of one compilation; a busy machine needs minutes
_one_at_a_time = threading.Lock()  # one compilation in this process; a file lock keeps other processes waiting
_failures: list[str] = []

Pointer, Integer = ctypes.c_void_p, ctypes.c_int64


class Kernels:
    """The compiled functions.

    `block`: every inner dimension must be a multiple of it. `in_pairs`: products of bfloat16 are faster than of float32
    (measured once a process). `in_bytes`: activations meet eight-bit weights in eight bits, too. `in_tiles`: AMX
    multiplies.
    """

    def __init__(self, path: Path):
        library = ctypes.CDLL(str(path))
        self.linear = library.cachegraph_linear
        self.linear.argtypes = [Pointer, Integer, Integer, Pointer, Integer, Pointer, Integer]
        self.read = library.cachegraph_read
        self.read.argtypes = [Pointer, Pointer, Integer, Pointer, Pointer, Integer, Pointer, Integer, Integer]
        self.panels = library.cachegraph_panels
        self.panels.argtypes = [Pointer, Integer, Integer, Integer, Integer, Integer, Pointer, Integer]
        self.correct = library.cachegraph_correct
        self.correct.argtypes = [Pointer, Integer]
        self.rotate = library.cachegraph_rotate
        self.rotate.argtypes = [Pointer, Integer, Integer, Integer, Integer, Integer]
        for function in (self.linear, self.read, self.panels, self.correct, self.rotate):
            function.restype = None
        library.cachegraph_block.restype = Integer
        library.cachegraph_in_pairs.restype = library.cachegraph_in_bytes.restype = Integer
        library.cachegraph_in_tiles.restype = Integer
        self.block: int = library.cachegraph_block()
        self.in_pairs = bool(library.cachegraph_in_pairs())
        self.in_bytes = bool(library.cachegraph_in_bytes())
        self.in_tiles = bool(library.cachegraph_in_tiles())


def kernels() -> "Kernels | str":
    """The kernels of this machine, compiled now if they were not yet; or why there are none."""
    if switched_off():
        return f"{SWITCH} turns them off"
    with _one_at_a_time:
        return _kernels()


def failure() -> str | None:
    """Why this process could not compile them, if it has tried: another one may."""
    return _failures[-1] if _failures else None


def compiler() -> str | None:
    """The C++ compiler of this machine."""
    return next((found for name in _compilers() if (found := shutil.which(name))), None)


@cache
def _kernels() -> "Kernels | str":
    command = compiler()
    if command is None:
        return "there is no C++ compiler (install g++ or clang++ for faster decoding)"
    try:
        version = _run([command, "--version"])
        sources = [path.read_text() for path in (_SOURCE, *sorted(_SOURCE.parent.glob("*.h")))]
        key = "\n".join([*sources, version, *_FLAGS, cpu_features()])
        path = home() / "kernels" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
        _compile(command, path)
        try:
            return Kernels(path)
        except OSError:  # it was cut short, or came here from another machine
            _compile(command, path, again=True)
            return Kernels(path)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        _failures.append(f"{command!r} can't compile them: {lines[0] if lines else type(error).__name__}")
        return _failures[-1]


def _compilers() -> list[str]:
    named = os.environ.get("CXX")
    return [named] if named else ["g++", "clang++", "c++"]


def _compile(compiler: str, path: Path, again: bool = False) -> None:
    """Compile to `path`, unless that is there; `again`: also then. What other processes load stays whole."""
    if path.is_file() and not again:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        if path.is_file() and not again:
            return
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            _run([compiler, *_FLAGS, str(_SOURCE), "-o", str(part)])
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)  # noqa: S603
    return done.stdout


def cpu_features() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
