"""Import, export and pull fusers: folders, and repositories of the hub."""

import re
from pathlib import Path
from typing import Literal

from cachegraph.engine.catalogue.progress import Progress
from cachegraph.errors import FuserError

from .files.c2c_format import export_reference
from .files.card import Card
from .files.verify import open_fuser, open_fusers
from .files.weights import save_fuser
from .fuser_folder import on_shelf, shelves
from .hub.hub_name import HUB_FORM, parse_hub_fuser
from .hub.pull import fetch_fuser
from .networks.base import Fuser

__all__ = ["Format", "export_fuser", "import_fusers", "pull_fuser"]

Format = Literal["ours", "reference"]

NAME = re.compile(r"\w[\w.+-]{0,199}", re.ASCII)


def import_fusers(folder: Path, name: str | None = None, *, force: bool = False) -> list[Path]:
    """Verify the fusers in a folder of either format and install them in ours; returns their new folders.

    One fuser is named `name`, or after its folder; several sharers become `<name>--sharer-<n>`. Nothing is written
    unless all are valid. Raises FuserError, also if a name is taken, unless `force` replaces it.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise FuserError(
            f"there is no folder {str(folder)!r}; check the path (fusers of the hub: cachegraph fusers pull)"
        )
    stem = name if name is not None else _own_name(folder)
    if not NAME.fullmatch(stem):
        raise FuserError(
            f"{stem!r} can't be a fuser's name: letters, digits and . _ + - only, a letter or digit first; "
            "give another with --name"
        )
    fusers = open_fusers(folder)
    names = [stem] if len(fusers) == 1 else [f"{stem}--sharer-{number}" for number in range(1, len(fusers) + 1)]
    if not force:
        _check_free(names)
    targets = [shelves()[0] / fuser_name for fuser_name in names]
    for fuser, target in zip(fusers, targets, strict=True):
        save_fuser(fuser, target)
    return targets


def export_fuser(source: Path, folder: Path, form: Format = "ours") -> None:
    """Write the fuser in `source` to a new folder, in our format or the published Cache-to-Cache format.

    Raises FuserError if the folder is not empty, or the published format can't hold the fuser.
    """
    folder = folder.expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FuserError(f"{str(folder)!r} is there already and not empty; choose another folder")
    fuser = open_fuser(source)
    if form == "ours":
        save_fuser(fuser, folder)
        return
    if not isinstance(fuser, Fuser):
        what = "translator" if fuser.card.kind == "graft" else "trained prefix"
        raise FuserError(f"{str(source)!r} is a {what}, which has no published format; export it as 'ours'")
    if fuser.card.architecture == "c2c":
        _check_sayable(fuser.card, source)
    export_reference(fuser, folder)  # refuses other architectures


def pull_fuser(name: str, progress: Progress) -> Path:
    """Download a fuser into the hub's cache; returns its folder. Raises FuserError or ConfigError."""
    wanted = parse_hub_fuser(name)
    if wanted is None:
        raise FuserError(f"{name!r} is not a fuser of the hub; write {HUB_FORM}")
    return fetch_fuser(wanted, progress)


def _own_name(folder: Path) -> str:
    """Name a published fuser after its folder, or the parent of a folder `final`."""
    real = folder.resolve()
    return real.parent.name if real.name == "final" else real.name


def _check_free(names: list[str]) -> None:
    installed, shipped = ({folder.name for folder in on_shelf(shelf)} for shelf in shelves())
    for name in names:
        if name in installed:
            raise FuserError(f"the fuser {name!r} is installed already; replace it with --force, or give --name")
        if name in shipped:
            raise FuserError(f"{name!r} is a fuser that ships; take its place with --force, or give --name")


def _check_sayable(card: Card, source: Path) -> None:
    """Raise FuserError if the published format can't state this card, so that the copy would compute otherwise."""
    implied = {"rope": ("rotated",), "reads": ("receiver-prompt",), "alignment": ("ids", "first", "longest")}
    for field, sayable in implied.items():
        if getattr(card, field) not in sayable:
            raise FuserError(
                f"the published format can't state {field} {getattr(card, field)!r}, which {str(source)!r} was "
                "trained with; export it as 'ours'"
            )
