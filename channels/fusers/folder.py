"""Reading strangers' folders, and writing ours so that nobody ever sees half of one."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cachegraph.errors import FuserError

__all__ = ["read_json", "replaced_folder"]

LARGEST_JSON = 16 << 20


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or a FuserError that says what is wrong with it."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise FuserError(f"{str(path)!r} is larger than any fuser's JSON; get the fuser again from its source")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FuserError(f"the fuser lacks {str(path)!r}; get it again from its source") from error
    except OSError as error:
        raise FuserError(f"{str(path)!r} can't be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise FuserError(f"{str(path)!r} is no JSON ({error}); get the fuser again from its source") from error
    if not isinstance(value, dict):
        raise FuserError(f"{str(path)!r} holds no JSON object; get the fuser again from its source")
    return value


@contextmanager
def replaced_folder(folder: Path, ours: frozenset[str]) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` if the block ends well.

    A folder that is already there is only replaced if all it holds is named in `ours`.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or {entry.name for entry in folder.iterdir()} - ours):
        raise FuserError(f"{str(folder)!r} holds other things than a fuser; choose another folder or clear it")
    fresh: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        fresh.chmod(0o755)
        yield fresh
        _swap(fresh, folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # what Python, torch and safetensors say of a full disk
        raise FuserError(
            f"the fuser can't be written to {str(folder)!r} ({error}); check room and permissions"
        ) from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(fresh, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.replace(folder, old)
    try:
        os.replace(fresh, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
