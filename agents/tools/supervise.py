"""Supervisor of a tool server: ends the server and all its children when cachegraph ends.

Run as `python -I -S supervise.py PARENT COMMAND...` in its own session, with the standard library alone. It passes its
standard streams to the command and waits. When the command ends, the supervisor is told to end, or its parent is gone,
even by SIGKILL, it ends the command's remaining processes: by SIGTERM, after GRACE seconds by SIGKILL.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["main"]

GRACE = 1.0  # seconds; the MCP client itself waits 2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class _Told(BaseException):
    """A signal asks to end, or the parent is gone."""


def main(parent: int, command: list[str]) -> int:
    """Run the command until it ends; returns its exit code."""

    def end(*_: Any) -> None:
        raise _Told

    def look(*_: Any) -> None:
        if os.getppid() != parent:
            raise _Told

    code = 128 + signal.SIGTERM
    child: subprocess.Popen[bytes] | None = None
    try:
        for number in ENDS:
            signal.signal(number, end)
        prctl = _prctl()
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)  # for kernels that do not report a parent's death
        look()
        child = subprocess.Popen(command, preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL))  # noqa: S603
        _let_go_of_streams()
        code = child.wait()
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        code = 127
    except _Told:
        pass
    for number in (*ENDS, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    _end_all(child)
    return code if code >= 0 else 128 - code


def _prctl() -> Callable[[int, int], object]:
    if sys.platform != "linux":
        return lambda option, value: None
    libc = ctypes.CDLL(None)
    return lambda option, value: libc.prctl(option, value, 0, 0, 0)


def _let_go_of_streams() -> None:
    """Leave the streams to the command alone, so that their other ends see EOF when it ends."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nothing, stream)


def _end_all(child: "subprocess.Popen[bytes] | None") -> None:
    """End the command's process group; on Linux also processes that left it, since orphans become our children."""
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while _reap(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    deadline = time.monotonic() + GRACE  # a process that can't be killed must not block us
    while (left := _reap(child)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _reap(child: "subprocess.Popen[bytes] | None") -> list[int]:
    """Collect ended processes; returns those still running."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    if sys.platform == "linux":
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent_of(name) == os.getpid()]
    try:
        os.waitpid(child.pid if child else -1, os.WNOHANG)
    except ChildProcessError:
        return []
    return [child.pid] if child else []


def _parent_of(process: str) -> int:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
