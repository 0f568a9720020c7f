"""When Python's garbage collector runs in a command.

Importing torch and transformers makes more than a million objects, which all stay. By default the collector traverses
them a dozen times meanwhile, which takes a second.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["start_without_collection"]


@contextmanager
def start_without_collection() -> Iterator[Callable[[], None]]:
    """Collect nothing until the function that this gives is called. Until the block ends what exists then is kept."""
    collects = gc.isenabled()

    def started() -> None:
        gc.freeze()
        if collects:
            gc.enable()

    gc.disable()
    try:
        yield started
    finally:
        gc.unfreeze()
        if collects:
            gc.enable()
