"""Resolve the name or path in a recipe to a fuser's folder, and check whether a fuser fits two models."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from time import time

from cachegraph.common.did_you_mean import did_you_mean
from cachegraph.common.paths import lasting
from cachegraph.engine.catalogue import Progress
from cachegraph.engine.catalogue.progress import silent
from cachegraph.errors import FuserError

from .files.card import Card, Geometry
from .files.joint_folder import PARTS
from .hub.hub_name import HUB_FORM, is_hub_fuser, parse_hub_fuser
from .hub.pull import fetch_fuser, find_cached_fuser

__all__ = ["check_pair", "find_fuser", "fuser_names", "installed_fusers", "on_shelf", "shelves"]

A_DAY = 86_400.0


def find_fuser(name_or_path: str, base: Path, progress: Progress = silent) -> Path:
    """Find the folder that a recipe in `base` names: beside the recipe, an absolute path, or an installed or shipped
    name.

    `hub:...` names a fuser of the hub and is downloaded if missing. Raises FuserError, or ConfigError if the hub can't
    be reached.
    """
    if is_hub_fuser(name_or_path):
        return _from_hub(name_or_path, progress)
    path = Path(os.path.expanduser(name_or_path))
    beside = base / path
    if os.path.isdir(beside):
        if not path.is_absolute() and not beside.resolve().is_relative_to(base.resolve()):
            raise FuserError(
                f"the fuser {name_or_path!r} leaves the recipe's folder; move it there or give its full path"
            )
        return beside
    name, _, part = name_or_path.rpartition("/")
    if _is_name(name_or_path) or (part in PARTS and _is_name(name)):
        for shelf in shelves():
            if os.path.isdir(shelf / name_or_path):
                return shelf / name_or_path
    remedy = f"put its folder into {str(shelves()[0])!r}"
    hint = did_you_mean(name_or_path, fuser_names(), remedy, most=3)
    raise FuserError(f"there is no fuser {name_or_path!r}, neither a folder of {str(base)!r} nor installed; {hint}")


def check_pair(
    card: Card,
    receiver: Geometry,
    sharer: Geometry,
    receiver_identity: str | None = None,
    sharer_identity: str | None = None,
) -> str | None:
    """Why this fuser can't join these two models, as a sentence; None if it can."""
    ends = (("receiver", card.receiver, receiver, receiver_identity), ("sharer", card.sharer, sharer, sharer_identity))
    for role, end, geometry, identity in ends:
        if end.geometry != geometry:
            return f"the fuser was made for the {role} {end.name!r} with {end.geometry}, but this one has {geometry}"
        if end.identity is not None and identity is not None and end.identity != identity:
            return (
                f"the fuser was trained with other weights of the {role} {end.name!r} "
                f"({end.identity!r}, here {identity!r}); use that revision, or a fuser of this one"
            )
    return None


def fuser_names() -> list[str]:
    """List the fusers that a recipe can call by name."""
    return sorted({folder.name for shelf in shelves() for folder in on_shelf(shelf)})


def shelves() -> tuple[Path, Path]:
    """The folders of fusers called by name: the installed ones, which take precedence, and the shipped ones."""
    return installed_fusers(), Path(str(files("cachegraph"))) / "recipes" / "fusers"


def installed_fusers() -> Path:
    """The folder of the fusers that were trained, imported or pulled by name on this machine."""
    return lasting("fusers", _idle)


@contextmanager
def _idle(shelf: Path) -> Iterator[bool]:
    """Yield whether the folder is unused: no training or unfinished save has touched its own folder for a day."""
    under_way = (path for path in shelf.iterdir() if path.name.endswith(".training") or path.name.startswith("."))
    newest = max((_touched(path) for path in under_way), default=0.0)
    yield time() - newest > A_DAY


def _touched(folder: Path) -> float:
    newest = 0.0
    for path in [folder, *(Path(place, name) for place, _, names in os.walk(folder) for name in names)]:
        with suppress(FileNotFoundError):  # a training deletes its older checkpoints
            newest = max(newest, path.lstat().st_mtime)
    return newest


def on_shelf(shelf: Path) -> list[Path]:
    """The fusers' folders in a shelf, without those that an interrupted save left or a training works in."""
    found = shelf.iterdir() if shelf.is_dir() else ()
    return sorted(folder for folder in found if folder.is_dir() and not _is_work(folder))


def _is_work(folder: Path) -> bool:
    return folder.name.startswith(".") or (folder.name.endswith(".training") and not (folder / "card.json").exists())


def _from_hub(name: str, progress: Progress) -> Path:
    wanted = parse_hub_fuser(name)
    if wanted is None:
        raise FuserError(f"{name!r} is not a fuser of the hub; write {HUB_FORM}")
    return find_cached_fuser(wanted) or fetch_fuser(wanted, progress)


def _is_name(text: str) -> bool:
    return text not in ("", ".", "..") and "/" not in text and os.sep not in text and "\0" not in text
