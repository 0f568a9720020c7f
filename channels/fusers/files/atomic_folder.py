"""Write folders atomically, and read JSON of untrusted folders."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EEXIST, ENOTEMPTY
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cachegraph.common.atomic_write import is_draft
from cachegraph.errors import FuserError

__all__ = ["holds_only", "read_json", "replaced_folder"]

LARGEST_JSON = 16 << 20
TRIES = 100


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Raises FuserError, which states what is wrong with the file."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise FuserError(f"{str(path)!r} is larger than any fuser's JSON; get the fuser again from its source")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FuserError(f"the fuser lacks {str(path)!r}; get it again from its source") from error
    except OSError as error:
        raise FuserError(f"{str(path)!r} can't be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise FuserError(f"{str(path)!r} is not JSON ({error}); get the fuser again from its source") from error
    if not isinstance(value, dict):
        raise FuserError(f"{str(path)!r} holds no JSON object; get the fuser again from its source")
    return value


@contextmanager
def replaced_folder(folder: Path, names: frozenset[str]) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` if the block succeeds.

    An existing folder is replaced only if `names` lists everything in it. Raises FuserError if it holds other things,
    or can't be written.
    """
    folder = folder.absolute()
    if folder.exists() and not holds_only(folder, names):
        raise FuserError(f"{str(folder)!r} holds other things than a fuser; choose another folder or clear it")
    fresh: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        fresh.chmod(0o755)
        yield fresh
        _swap(fresh, folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # raised by Python, torch and safetensors on a full disk
        raise FuserError(
            f"the fuser can't be written to {str(folder)!r} ({error}); check room and permissions"
        ) from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)


def holds_only(folder: Path, names: frozenset[str]) -> bool:
    """Whether a folder holds only these names, or drafts of them that a killed command left."""
    try:
        return all(entry.name in names or is_draft(entry.name) for entry in folder.iterdir())
    except FileNotFoundError:  # another process is replacing it
        return True
    except NotADirectoryError:
        return False


def _swap(fresh: Path, folder: Path) -> None:
    """Put `fresh` in the place of `folder`. If two processes do so at once, both succeed and the later one wins."""
    aside: list[Path] = []
    try:
        for _ in range(TRIES):
            try:
                os.replace(fresh, folder)
                return
            except OSError as error:
                if error.errno not in (ENOTEMPTY, EEXIST) and not folder.exists():
                    raise
            aside.append(_set_aside(folder))
        raise FuserError(f"{str(folder)!r} is being replaced by other commands; try again when they have ended")
    except BaseException:
        if aside and not folder.exists():
            with suppress(OSError):
                os.replace(aside.pop(), folder)
        raise
    finally:
        for old in aside:
            shutil.rmtree(old, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    with suppress(FileNotFoundError):  # another process was faster
        os.replace(folder, old)
    return old
