"""Download single fusers of a repository into the Hugging Face hub's own cache. No torch."""

import re
from pathlib import Path

from cachegraph.common.did_you_mean import near_names
from cachegraph.engine.catalogue.hub_download import Selection, cached_snapshot, snapshot
from cachegraph.engine.catalogue.progress import Progress
from cachegraph.errors import FuserError

from ..files.c2c_folder import CONFIG, read_sharers, weights_folder
from .hub_name import HubFuser

__all__ = ["fetch_fuser", "find_cached_fuser"]

OURS = ("card.json", "fuser.safetensors")
FILES = (*OURS, "config.json", "projector_*.json", "projector_*.pt")


def find_cached_fuser(wanted: HubFuser) -> Path | None:
    """Find the fuser's folder in the hub's cache, if all its files are there. No network access."""
    cached = cached_snapshot(_selection(wanted))
    return cached.folder / wanted.folder if cached is not None and _is_whole(cached.folder / wanted.folder) else None


def fetch_fuser(wanted: HubFuser, progress: Progress) -> Path:
    """Download the fuser; returns its folder. Raises ConfigError without network, FuserError if it does not exist."""
    folder = snapshot(_selection(wanted), progress).folder / wanted.folder
    if not _is_whole(folder):
        raise FuserError(f"the hub fuser {_named(wanted)} is incomplete in {str(folder)!r}; run again with the network")
    return folder


def _selection(wanted: HubFuser) -> Selection:
    inside = f"{wanted.folder}/" if wanted.folder else ""
    patterns = [f"{inside}{deeper}{file}" for deeper in ("", "final/") for file in FILES]
    if wanted.folder.endswith("/final"):
        patterns.append(f"{wanted.folder.removesuffix('final')}config.json")

    def check(picked: list[str], files: list[str]) -> None:
        if not any(name.endswith((f"/{CONFIG}", "/card.json")) for name in (f"/{file}" for file in picked)):
            raise FuserError(_why_no_fuser(wanted, files))

    return Selection(wanted.repo, wanted.revision, tuple(patterns), (), "fuser repository", FuserError, check)


def _why_no_fuser(wanted: HubFuser, files: list[str]) -> str:
    places = (re.fullmatch(rf"(.+?)(?:/final)?/(?:{CONFIG}|card\.json)", name) for name in files)
    folders = sorted({place[1] for place in places if place and place[1] != "final"})
    if not folders:
        return f"the hub repository {wanted.repo!r} holds no fuser: neither a card.json nor a {CONFIG}; check the name"
    near = near_names(wanted.folder, folders, most=3, cutoff=0.4) or folders[:5]
    at = f"@{wanted.revision}" if wanted.revision else ""
    meant = ", ".join(repr(f"hub:{wanted.repo}{at}/{folder}") for folder in near)
    return f"the hub repository {wanted.repo!r} holds no fuser in {wanted.folder or '/'!r}; it has {meant}"


def _is_whole(folder: Path) -> bool:
    if all((folder / name).is_file() for name in OURS):
        return True
    weights = weights_folder(folder)
    if weights is None:
        return False
    try:
        numbers = {number for sharer in read_sharers(weights) for _, number in sharer.layers.values()}
    except FuserError:
        return True  # complete as published: loading reports what is wrong with it
    return all((weights / f"projector_{number}{end}").is_file() for number in numbers for end in (".json", ".pt"))


def _named(wanted: HubFuser) -> str:
    return repr(f"{wanted.repo}/{wanted.folder}".rstrip("/"))
