"""Paths that leave a folder, also through links.

transformers and cachegraph read the files of a model's, fuser's or translator's folder. A link in it, or a name in one
of its index files, could lead to a file that the recipe may not read, so all of them are resolved first.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["find_escape", "why_outside"]

MAX_FILES = 20_000
MAX_JSON = 64_000_000  # bytes
_NAMING = (".index.json", "config.json")  # files that refer to other files
# Keys of configurations that transformers follows to other files and folders.
_FOLLOWED = ("base_model_name_or_path", "chat_template_file", "tokenizer_file", "vocab_file", "merges_file", "spm_file")


def why_outside(folder: Path, place: str) -> str | None:
    """The reason why a recipe's `place` lies outside its `folder`, as the end of a sentence; None if inside."""
    if place.startswith("~") or "\\" in place or re.match(r"[A-Za-z]:", place):
        return "leads out of the recipe's folder"
    try:
        return find_escape(folder / place, folder)
    except (OSError, RuntimeError, ValueError) as error:
        return f"can't be read ({getattr(error, 'strerror', None) or 'the path can not be used'})"


def find_escape(place: Path, inside: Path) -> str | None:
    """The reason why a path leads out of the folder `inside`, as the end of a sentence; None if it doesn't."""
    if not _is_inside(place, inside):
        return "leads out of the recipe's folder"
    if place.exists() and not (place.is_dir() or place.is_file()):  # reading a pipe or a device might block forever
        return "is not a regular file"
    for count, path in enumerate(_walk(place) if place.is_dir() else (), 1):
        name = str(path.relative_to(place))
        if count > MAX_FILES:
            return f"holds more than {MAX_FILES:,} files"
        if not _is_inside(path, inside):
            return f"holds {name!r}, a link that leads out of the recipe's folder"
        if not (path.is_dir() or path.is_file()):
            return f"holds {name!r}, which is not a regular file"
        if path.name.endswith(_NAMING) and path.is_file() and (named := _stray(path, inside)) is not None:
            return f"holds {name!r}, which names {named!r} outside the recipe's folder"
    return None


def _walk(folder: Path) -> Iterator[Path]:
    """Yield everything in a folder, without following links."""
    todo = [folder]
    while todo:
        for path in sorted(todo.pop().iterdir()):
            yield path
            if path.is_dir() and not path.is_symlink():
                todo.append(path)


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder)
    except (OSError, RuntimeError, ValueError):  # a loop of links, a too long name, a NUL
        return False


def _stray(file: Path, inside: Path) -> str | None:
    """Find a file outside the recipe's folder that an index or a configuration names."""
    try:
        if file.stat().st_size > MAX_JSON:
            return "more files than can be checked"
        read = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None  # its reader reports the error
    return next((name for name in _named(read) if not _is_inside(file.parent / name, inside)), None)


def _named(read: Any) -> Iterator[str]:
    if not isinstance(read, dict):
        return
    shards = read.get("weight_map")
    yield from {shard for shard in shards.values() if isinstance(shard, str)} if isinstance(shards, dict) else ()
    for key in _FOLLOWED:
        if isinstance(name := read.get(key), str):
            yield name
