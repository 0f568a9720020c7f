"""Run a command as a process, and end it quickly."""

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

    Skips the interpreter's teardown, which takes a second to free all objects of torch and transformers. Threads are
    still joined, and `atexit` functions called.
    """
    global _status
    atexit.register(_end_at_once)  # registered first, so it is called last
    try:
        main()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            _status = ended.code or 0
        raise
    _status = 0


def _end_at_once() -> None:
    if _status is None:  # Python still has to print an error
        return
    logging.shutdown()
    with suppress(OSError, ValueError):  # if a stream can't be written, Python reports it as it ends
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(_status)
