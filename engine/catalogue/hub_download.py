"""Downloads files of a hub repository into the hub's own cache, which other programs share."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from cachegraph.common.human import format_bytes
from cachegraph.errors import CachegraphError, ConfigError

from .progress import Progress
from .store import folder_bytes

__all__ = ["Selection", "Snapshot", "cached_snapshot", "snapshot"]

Check = Callable[[list[str], list[str]], None]


@dataclass(frozen=True)
class Selection:
    """What of a repository is wanted. `check` gets the wanted names and all names, and raises where they won't do."""

    repo: str
    revision: str | None
    wanted: tuple[str, ...]  # patterns, whose * crosses folders
    unwanted: tuple[str, ...]
    kind: str  # what messages call it
    error: type[CachegraphError]  # for what is wrong with the repository rather than with this machine
    check: Check
    advice: str = ""  # added where the repository is not there

    def __str__(self) -> str:
        return f"the hub {self.kind} {self.repo!r}"

    def picks(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.wanted) and not any(
            fnmatch(name, pattern) for pattern in self.unwanted
        )


class Snapshot(NamedTuple):
    """A revision on this disk."""

    folder: Path
    commit: str
    licence: str | None


class _Listing(NamedTuple):
    bytes: int
    licence: str | None


def snapshot(selection: Selection, progress: Progress) -> Snapshot:
    """Fetch what is not here yet; where the hub can't be reached, take what its cache holds."""
    try:
        listing = _list(selection)
        folder = _download(selection, listing, progress)
        return Snapshot(folder, folder.name, listing.licence)
    except CachegraphError:
        raise
    # The hub's client raises errors of whichever HTTP library it was built on; each is told in our words.
    except Exception as error:
        explained = _explain(selection, error)
        cached = cached_snapshot(selection) if isinstance(explained, ConfigError) else None
        if cached is None:
            raise explained from error
        return cached


def cached_snapshot(selection: Selection) -> Snapshot | None:
    """The revision in the hub's cache; touches no network. Of an interrupted fetch files may be missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            selection.repo,
            revision=selection.revision,
            allow_patterns=list(selection.wanted),
            ignore_patterns=list(selection.unwanted),
            local_files_only=True,
        )
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    return Snapshot(Path(folder), Path(folder).name, None)


def _list(selection: Selection) -> _Listing:
    """Ask the hub what there is, before anything is fetched."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(selection.repo, revision=selection.revision, files_metadata=True)
    files = info.siblings or []
    wanted = [file for file in files if selection.picks(file.rfilename)]
    selection.check([file.rfilename for file in wanted], [file.rfilename for file in files])
    sizes = {file.blob_id or file.rfilename: file.size or 0 for file in wanted}  # equal files are fetched once
    licence = getattr(info.card_data, "license", None)
    return _Listing(sum(sizes.values()), licence if isinstance(licence, str) else None)


def _download(selection: Selection, listing: _Listing, progress: Progress) -> Path:
    from huggingface_hub import constants, snapshot_download

    cache = Path(constants.HF_HUB_CACHE)
    present = next((parent for parent in [cache, *cache.parents] if parent.exists()), Path.cwd())
    repo_folder = cache / f"models--{selection.repo.replace('/', '--')}"
    had = folder_bytes(repo_folder / "blobs")
    free, missing = shutil.disk_usage(present).free, max(listing.bytes - had, 0)
    if missing > free:
        raise ConfigError(
            f"not enough room on the disk of {str(cache)!r}: {selection.repo!r} needs {format_bytes(listing.bytes)}, "
            f"{format_bytes(free)} are free; make room, or point HF_HOME to another disk"
        )
    folder = snapshot_download(
        selection.repo,
        revision=selection.revision,  # by its name, so that the cache knows the name when the hub is out of reach
        allow_patterns=list(selection.wanted),
        ignore_patterns=list(selection.unwanted),
        tqdm_class=_reporting_bar(progress, listing.bytes),
    )
    return Path(folder)


def _reporting_bar(progress: Progress, total: int) -> Any:
    """A class like tqdm that draws nothing, and reports the bytes of the bar that counts bytes."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any):
            self._counts_bytes = kwargs.get("unit") == "B"
            self._done = 0
            self._counting = Lock()  # files are fetched in threads
            super().__init__(*args, **kwargs | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._counts_bytes:
                with self._counting:
                    self._done += int(n or 0)
                    progress("fetch", self._done, max(total, self._done))

    return Bar


def _explain(selection: Selection, error: Exception) -> CachegraphError:
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return ConfigError(
                f"{selection} is gated: accept its terms at https://huggingface.co/{selection.repo}, "
                "then log in with: hf auth login"
            )
        case errors.RevisionNotFoundError():
            return selection.error(
                f"{selection} has no revision {selection.revision!r}; see its branches and commits on the hub"
            )
        case errors.RepositoryNotFoundError():
            return selection.error(
                f"the hub shows you no {selection.kind} {selection.repo!r}; check the name, "
                f"or log in with: hf auth login{selection.advice}"
            )
        case errors.OfflineModeIsEnabled():
            return ConfigError(
                f"{selection} is not on this disk, and HF_HUB_OFFLINE forbids to fetch it; unset it to pull"
            )
        case errors.HFValidationError():
            return selection.error(f"{selection.repo!r} is not a valid hub id: {error}")
        case OSError(errno=28):
            return ConfigError(
                f"the disk is full while fetching {selection}; make room, or point HF_HOME to another disk"
            )
    reason = str(error).strip().splitlines()
    return ConfigError(
        f"{selection} can't be fetched ({reason[0] if reason else repr(error)}); check the network and the proxy, "
        "then try again"
    )
