"""Writing a file whole or not at all: a reader never sees half of it."""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["write_atomically"]


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file beside `path` and put it in its place. Text is UTF-8. Raises OSError, and leaves nothing then."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
