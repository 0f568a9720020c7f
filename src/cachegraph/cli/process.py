"""A command as a process of its own."""

import atexit
import logging
import os
import sys
from contextlib import suppress

from . import main

__all__ = ["run_process"]

_status: int | None = None  # the exit code, once the command has ended


def run_process() -> None:
    """Run the command of `sys.argv`, and end the process with its exit code.

    The interpreter is not torn down: to free all objects of torch and transformers takes a second. Before the process
    ends its threads are joined, and what others have registered with `atexit` is called.
    """
    global _status
    atexit.register(_end_at_once)  # first, so that it is called last
    try:
        main()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            _status = ended.code or 0
        raise
    _status = 0


def _end_at_once() -> None:
    if _status is None:  # Python has an error to print
        return
    logging.shutdown()
    with suppress(OSError, ValueError):  # if they can't be written to, Python says so as it ends
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(_status)
