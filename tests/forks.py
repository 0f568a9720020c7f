"""Processes that have imported torch and the package already: each a fork of a clean one that has done so.

They are processes of their own in all else: they get signals, end with an exit code and can be killed.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

__all__ = ["Command", "run_script", "start"]

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["cachegraph.training.train", "torch", "cachegraph.cli.train"])
ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # one thread, no network


def start(target: Callable[..., object], *arguments: Any, **options: Any) -> ForkServerProcess:
    """Call `target` in a process of its own, in this environment."""
    return _fork(_call, target, arguments, options)


class Command:
    """`python -m cachegraph ARGUMENTS`, begun in this environment. Its output goes to files in `folder`."""

    def __init__(self, *arguments: str | Path, folder: Path, **variables: str):
        self._streams = _streams(folder)
        self._process = _fork(_run_command, list(map(str, arguments)), self._streams, **variables)

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self, timeout: float) -> CompletedProcess[str]:
        """Wait until it has ended."""
        return _end(self._process, timeout, self._streams)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def run_script(script: Path, *arguments: str, folder: Path, stdin: str = "", timeout: float = 240) -> str:
    """What `python SCRIPT ARGUMENTS` prints, which must succeed. `folder` is for files of its streams."""
    streams = _streams(folder)
    streams[0].write_text(stdin, encoding="utf-8")
    done = _end(_fork(_run_script, str(script), arguments, streams), timeout, streams)
    assert done.returncode == 0, done
    return done.stdout


def _fork(work: Callable[..., object], *arguments: Any, **variables: str) -> ForkServerProcess:
    environment = {**os.environ, **ALONE, **variables}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ALONE.items():  # the server of forks starts with the first of them
            patch.setenv(name, value)
        patch.setattr(sys.modules["__main__"], "__spec__", None)  # the new process need not know what pytest is
        process = FORKS.Process(target=_work, args=(environment, work, arguments))
        process.start()
    return process


def _end(process: ForkServerProcess, timeout: float, streams: Sequence[Path]) -> CompletedProcess[str]:
    process.join(timeout)
    late = process.is_alive()
    process.kill()
    process.join()
    out, err = (path.read_text(encoding="utf-8") for path in streams[1:])
    assert not late, f"it goes on after {timeout} seconds: {out} {err}"
    assert process.exitcode is not None
    return CompletedProcess("", process.exitcode, out, err)


def _streams(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / name for name in ("stdin", "stdout", "stderr")]
    for path in paths:
        path.touch()
    return paths


def _work(environment: Mapping[str, str], work: Callable[..., object], arguments: Sequence[Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    work(*arguments)


def _call(target: Callable[..., object], arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
    target(*arguments, **options)


def _run_command(arguments: Sequence[str], streams: Sequence[Path]) -> None:
    _begin(["cachegraph", *arguments], streams)
    runpy.run_module("cachegraph", run_name="__main__")


def _run_script(script: str, arguments: Sequence[str], streams: Sequence[Path]) -> None:
    _begin([script, *arguments], streams)
    runpy.run_path(script, run_name="__main__")


def _begin(command: list[str], streams: Sequence[Path]) -> None:
    """Give this process its command line, its streams, and Python's own way with Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = command
    files = []
    for descriptor, (path, mode) in enumerate(zip(streams, ("r", "w", "w"), strict=True)):
        with path.open(mode) as opened:
            os.dup2(opened.fileno(), descriptor)
        files.append(os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
    sys.stdin, sys.stdout, sys.stderr = files
