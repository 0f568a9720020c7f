"""One door to every kind of fuser folder."""

from pathlib import Path

import torch

from cachegraph.errors import FuserError

from .base import Fuser
from .reference import is_reference, load_reference
from .weights import CARD, read_fuser

__all__ = ["load_fuser"]


def load_fuser(folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Fuser:
    """The fuser in a folder of ours or in a published one; `dtype` None keeps the number type it was saved in."""
    folder = Path(folder)
    if (folder / CARD).is_file():
        return read_fuser(folder).to(device, dtype)
    if not is_reference(folder) and not folder.is_dir():
        raise FuserError(f"there is no fuser folder {str(folder)!r}; check the path")
    fusers = load_reference(folder)
    if len(fusers) > 1:
        raise FuserError(
            f"{str(folder)!r} joins {len(fusers)} sharers to one receiver; load it with load_reference, save each "
            "fuser with save_fuser and name one folder an edge"
        )
    return fusers[0].to(device, dtype)
