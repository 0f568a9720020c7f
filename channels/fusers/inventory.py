"""List the fusers on this disk, describe one, and remove one. Opening a fuser needs torch."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cachegraph.common.did_you_mean import did_you_mean
from cachegraph.engine.catalogue.store import folder_bytes
from cachegraph.errors import CachegraphError, ConfigError, FuserError

from .files.card import Card
from .files.joint_folder import fuser_parts
from .fuser_folder import find_fuser, on_shelf, shelves
from .hub.hub_name import HUB_FORM, is_hub_fuser, parse_hub_fuser
from .hub.pull import find_cached_fuser

__all__ = ["Facts", "Item", "Where", "describe", "inventory", "locate", "remove_fuser"]

Where = Literal["installed", "shipped"]


@dataclass(frozen=True)
class Facts:
    """The facts that opening a fuser shows beside its card."""

    card: Card
    parameters: int
    open_layers: tuple[int, ...] | None  # receiver layers; None: a translator, which has no gates
    gates_open: float | None  # fraction of all gates


@dataclass(frozen=True)
class Item:
    """A fuser of a shelf, in its own folder or as part of a pair; or the reason why it is invalid."""

    name: str
    where: Where
    folder: Path
    bytes: int
    facts: Facts | None
    problem: str | None


def inventory() -> list[Item]:
    """Open and verify every fuser that a recipe can call by name. This reads all their files."""
    wheres: tuple[Where, Where] = ("installed", "shipped")
    return [
        _item(part, str(part.relative_to(shelf)), where)
        for where, shelf in zip(wheres, shelves(), strict=True)
        for folder in on_shelf(shelf)
        for part in fuser_parts(folder)
    ]


def describe(folder: Path) -> Facts:
    """Open the fuser in a folder. Raises FuserError if it is damaged."""
    from .files.verify import open_fuser
    from .networks.base import Fuser

    opened = open_fuser(folder)
    if isinstance(opened, Fuser):
        return Facts(opened.card, opened.parameter_count, opened.open_layers, opened.openness)
    return Facts(opened.card, opened.parameter_count, None, None)


def locate(name_or_path: str) -> Path:
    """Find the folder of a fuser on this disk: a path, a name, or a downloaded one of the hub. Raises FuserError."""
    if is_hub_fuser(name_or_path):
        wanted = parse_hub_fuser(name_or_path)
        if wanted is None:
            raise FuserError(f"{name_or_path!r} is not a fuser of the hub; write {HUB_FORM}")
        folder = find_cached_fuser(wanted)
        if folder is None:
            raise FuserError(
                f"{name_or_path!r} is not on this disk; fetch it with: cachegraph fusers pull {name_or_path}"
            )
        return folder
    path = Path(os.path.expanduser(name_or_path))
    return path if os.path.isdir(path) else find_fuser(name_or_path, Path.cwd())


def remove_fuser(name: str) -> int:
    """Delete an installed fuser, damaged or not; returns the bytes freed. Raises FuserError or ConfigError."""
    shelf, shipped = shelves()
    installed = {folder.name: folder for folder in on_shelf(shelf)}
    if name not in installed:
        if name in {folder.name for folder in on_shelf(shipped)}:
            raise FuserError(f"{name!r} ships with cachegraph and stays; only fusers in {str(shelf)!r} can be removed")
        hint = did_you_mean(name, installed, "see what is with: cachegraph fusers list")
        raise FuserError(f"{name!r} is not installed in {str(shelf)!r}, so there is nothing to remove; {hint}")
    folder = installed[name]
    try:
        if folder.is_symlink():  # its target is not ours
            folder.unlink()
            return 0
        freed = folder_bytes(folder)
        shutil.rmtree(folder)
    except OSError as error:
        raise ConfigError(f"{str(folder)!r} can't be removed ({error.strerror}); check its permissions") from error
    return freed


def _item(folder: Path, name: str, where: Where) -> Item:
    size, facts, problem = 0, None, None
    try:
        size = folder_bytes(folder)
        facts = describe(folder)
    except CachegraphError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{str(folder)!r} can't be read ({error.strerror}); check its permissions"
    return Item(name, where, folder, size, facts, problem)
