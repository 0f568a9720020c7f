"""A folder with both networks of a pair: `fuse/`, a fuser, and `graft/`, a translator. No torch."""

from pathlib import Path

from cachegraph.errors import FuserError

__all__ = ["PARTS", "fuser_parts", "is_pair", "refuse_pair"]

PARTS = ("fuse", "graft")


def is_pair(folder: Path) -> bool:
    """Whether the folder is such a pair rather than a single fuser."""
    return all((folder / part / "card.json").is_file() for part in PARTS)


def fuser_parts(folder: Path) -> list[Path]:
    """The folders of the networks: both of a pair, else this one."""
    return [folder / part for part in PARTS] if is_pair(folder) else [folder]


def refuse_pair(folder: Path) -> None:
    """Raise FuserError if the folder holds a pair, or half of one, instead of a single network."""
    if is_pair(folder):
        names = " or ".join(repr(f"{folder.name}/{part}") for part in PARTS)
        raise FuserError(f"{str(folder)!r} holds a fuser and a translator; name one of them: {names}")
    present = [part for part in PARTS if (folder / part / "card.json").is_file()]
    if present:
        missing = next(part for part in PARTS if part not in present)
        raise FuserError(
            f"{str(folder)!r} holds {present[0]!r} and lacks {missing!r} beside it; get the pair again, or name "
            f"{f'{folder.name}/{present[0]}'!r}"
        )
