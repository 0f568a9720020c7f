"""Waiting for what another thread, process or server does."""

import time
from collections.abc import Callable

__all__ = ["wait_until"]


def wait_until(happened: Callable[[], object], seconds: float = 240) -> None:
    """Look again and again, until it has happened. Fails after so many seconds."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
