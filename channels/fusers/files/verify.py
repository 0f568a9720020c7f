"""Verify an untrusted folder: no links leave it, and every number is checked."""

import os
from collections.abc import Iterator
from pathlib import Path

from cachegraph.errors import FuserError, library_errors

from ..networks.base import Fuser
from ..networks.prefix import Prefix
from ..networks.translator import Translator
from .c2c_format import load_reference
from .joint_folder import refuse_pair
from .load import load_ours
from .weights import CARD, WEIGHTS

__all__ = ["open_fuser", "open_fusers"]


def open_fuser(folder: Path) -> Fuser | Translator | Prefix:
    """Open the one fuser, translator or trained prefix in a folder, ours or published. Raises FuserError."""
    fusers = open_fusers(folder)
    if len(fusers) > 1:
        raise FuserError(
            f"{str(folder)!r} joins {len(fusers)} sharers to one receiver; make a fuser of each with: "
            f"cachegraph fusers import {str(folder)!r}"
        )
    return fusers[0]


def open_fusers(folder: Path) -> tuple[Fuser | Translator | Prefix, ...]:
    """Open everything in a folder, one fuser per sharer. Raises FuserError."""
    with library_errors(lambda why: FuserError(f"{str(folder)!r} can't be read ({why}); check its permissions")):
        _check_files(folder)
        refuse_pair(folder)
        if not any((folder / name).is_file() for name in (CARD, WEIGHTS)):
            return load_reference(folder)
        return (load_ours(folder),)


def _check_files(folder: Path) -> None:
    """Raise FuserError unless all files to read are plain files of this folder."""
    root = _root(folder)
    for path in _files(folder):
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:  # a link to itself
            raise FuserError(f"{str(path)!r} is a link that leads nowhere; get the fuser again") from error
        if not real.is_relative_to(root):
            raise FuserError(f"{str(path)!r} leads out of its folder, to {str(real)!r}; put the file itself there")
        if real.exists() and not real.is_file():  # reading a pipe or a device might never end
            raise FuserError(f"{str(path)!r} is not a regular file; get the fuser again from its source")


def _files(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / "final"):
        named = (place / name for name in (CARD, WEIGHTS, "config.json"))
        yield from (path for path in (*named, *place.glob("projector_*")) if os.path.lexists(path))


def _root(folder: Path) -> Path:
    """The root that the folder's files must stay in: the folder, or the repository's blobs in the hub's cache."""
    real = folder.resolve()
    for above in real.parents:
        if above.name == "snapshots" and above.parent.name.startswith("models--"):
            return above.parent
    return real
