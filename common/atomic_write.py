"""Write a file whole or not at all."""

import os
import threading
from contextlib import suppress
from errno import EINVAL
from pathlib import Path

from .surrogates import mend

__all__ = ["is_draft", "write_atomically"]

DRAFT = ".part"


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a temporary file beside `path` and rename it to `path`; the last of several concurrent writers wins.

    Encodes text as UTF-8, lone surrogates as U+FFFD. Raises OSError, also for an invalid path, and then leaves no
    file behind.
    """
    raw = mend(data).encode() if isinstance(data, str) else data
    if not path.name or "\0" in str(path):
        raise OSError(EINVAL, "the path can't be a file's")
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{DRAFT}")
    try:
        draft.write_bytes(raw)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def is_draft(name: str) -> bool:
    """Whether a file name is that of a killed writer's temporary file."""
    return name.startswith(".") and name.endswith(DRAFT)
