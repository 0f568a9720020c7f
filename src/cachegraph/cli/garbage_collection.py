"""Turn Python's garbage collector off while a command starts.

Importing torch and transformers creates over a million objects that live as long as the process. The collector would
traverse them about twelve times meanwhile, which takes a second.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["defer_garbage_collection"]


@contextmanager
def defer_garbage_collection() -> Iterator[Callable[[], None]]:
    """Disable collection until the yielded function is called. It exempts all existing objects until the block ends.

    In a program that has frozen its objects they stay so, and no others are exempted.
    """
    collects, has_frozen = gc.isenabled(), gc.get_freeze_count() > 0

    def started() -> None:
        if not has_frozen:
            gc.freeze()
        if collects:
            gc.enable()

    gc.disable()
    try:
        yield started
    finally:
        if not has_frozen:
            gc.unfreeze()
        if collects:
            gc.enable()
