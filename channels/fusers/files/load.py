"""Load a fuser or translator from any kind of folder."""

from pathlib import Path

import torch

from cachegraph.errors import FuserError, library_errors

from ..networks.base import Fuser
from ..networks.prefix import Prefix
from ..networks.translator import Translator
from .c2c_format import is_reference, load_reference
from .joint_folder import refuse_pair
from .weights import CARD, read_card, read_fuser, read_prefix, read_translator

__all__ = ["load_fuser", "load_ours", "load_translator"]


def load_translator(
    folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Translator:
    """Load the translator in a folder; `dtype` None keeps the saved dtype. Raises FuserError."""
    return read_translator(folder).to(device, dtype)


def load_ours(folder: Path | str) -> Fuser | Translator | Prefix:
    """Load what the card of a folder of ours describes. Raises FuserError."""
    match read_card(folder).kind:
        case "prefix":
            return read_prefix(folder)
        case "graft":
            return load_translator(folder)
        case _:
            return load_fuser(folder)


def load_fuser(folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Fuser:
    """Load the fuser in a folder, ours or published; `dtype` None keeps the saved dtype. Raises FuserError."""
    folder = Path(folder)
    with library_errors(lambda why: FuserError(f"{str(folder)!r} can't be read ({why}); check its permissions")):
        if (folder / CARD).is_file():
            return read_fuser(folder).to(device, dtype)
        refuse_pair(folder)
    if not is_reference(folder) and not folder.is_dir():
        raise FuserError(f"there is no fuser folder {str(folder)!r}; check the path")
    fusers = load_reference(folder)
    if len(fusers) > 1:
        raise FuserError(
            f"{str(folder)!r} joins {len(fusers)} sharers to one receiver; load it with load_reference, save each "
            "fuser with save_fuser and name one folder an edge"
        )
    return fusers[0].to(device, dtype)
