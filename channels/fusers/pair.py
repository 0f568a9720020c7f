"""A folder that holds both networks of a pair: `fuse/`, a fuser, and `graft/`, a translator. No torch."""

from pathlib import Path

__all__ = ["PARTS", "fuser_parts", "is_pair"]

PARTS = ("fuse", "graft")


def is_pair(folder: Path) -> bool:
    """Whether this is such a folder rather than a fuser's own."""
    return all((folder / part / "card.json").is_file() for part in PARTS)


def fuser_parts(folder: Path) -> list[Path]:
    """The folders of the networks that lie here: both of a pair, else this one."""
    return [folder / part for part in PARTS] if is_pair(folder) else [folder]
