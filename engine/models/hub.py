"""Models of the Hugging Face hub, in the hub's own cache, so that what other programs fetched is not fetched twice."""

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from cachegraph.errors import CachegraphError, ConfigError, ModelError

from .catalogue import HubSource
from .progress import Progress

__all__ = ["Snapshot", "fetch_snapshot"]

WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt"]
# Other formats of the same weights lie in folders, or are the vendor's own.
UNWANTED = ["*/*", "consolidated*"]
PICKLED = (".bin", ".pt", ".pth")


class Snapshot(NamedTuple):
    """A revision on this disk."""

    folder: Path
    commit: str
    licence: str | None


class _Listing(NamedTuple):
    bytes: int
    licence: str | None


def fetch_snapshot(source: HubSource, progress: Progress) -> Snapshot:
    """Fetch what a load needs of `source`; where the hub can't be reached, take what its cache holds."""
    try:
        listing = _list(source)
        folder = _download(source, listing, progress)
        return Snapshot(folder, folder.name, listing.licence)
    except CachegraphError:
        raise
    # The hub's client raises errors of whichever HTTP library it was built on; each is told in our words.
    except Exception as error:
        explained = _explain(source, error)
        cached = _cached(source) if isinstance(explained, ConfigError) else None
        if cached is None:
            raise explained from error
        return cached


def _list(source: HubSource) -> _Listing:
    """Ask the hub what there is, before anything is fetched."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
    files = {each.rfilename: each.size or 0 for each in info.siblings or []}
    wanted = [name for name in files if _matches(name, WANTED) and not _matches(name, UNWANTED)]
    if not any(name.endswith(".safetensors") for name in wanted):
        raise ModelError(_why_no_weights(source, list(files)))
    licence = getattr(info.card_data, "license", None)
    return _Listing(sum(files[name] for name in wanted), licence if isinstance(licence, str) else None)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _why_no_weights(source: HubSource, files: list[str]) -> str:
    if any(name.endswith(PICKLED) for name in files):
        return (
            f"the hub model {source.repo!r} has only pickled weights, which can run code when they are read; "
            "choose one with safetensors"
        )
    if any(name.endswith(".gguf") for name in files):
        return (
            f"the hub model {source.repo!r} has only GGUF files; download the one you want "
            "and give the path of the .gguf file as the source"
        )
    return f"the hub repository {source.repo!r} has no safetensors weights, so it is no model that can be loaded"


def _download(source: HubSource, listing: _Listing, progress: Progress) -> Path:
    from huggingface_hub import constants, snapshot_download

    cache = Path(constants.HF_HUB_CACHE)
    present = next((parent for parent in [cache, *cache.parents] if parent.exists()), Path.cwd())
    here = cache / f"models--{source.repo.replace('/', '--')}"
    had = sum(path.stat().st_size for path in (here / "blobs").glob("*")) if here.is_dir() else 0
    free, missing = shutil.disk_usage(present).free, max(listing.bytes - had, 0)
    if missing > free:
        raise ConfigError(
            f"not enough room on the disk of {str(cache)!r}: {source.repo!r} needs {listing.bytes / 1e9:.2f} GB, "
            f"{free / 1e9:.2f} GB are free; make room, or point HF_HOME to another disk"
        )
    folder = snapshot_download(
        source.repo,
        revision=source.revision,  # by its name, so that the cache knows the name when the hub is out of reach
        allow_patterns=WANTED,
        ignore_patterns=UNWANTED,
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
            super().__init__(*args, **kwargs | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._counts_bytes:
                self._done += int(n or 0)
                progress("fetch", self._done, max(total, self._done))

    return Bar


def _cached(source: HubSource) -> Snapshot | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                source.repo,
                revision=source.revision,
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        return None
    return Snapshot(folder, folder.name, None)


def _explain(source: HubSource, error: Exception) -> ConfigError | ModelError:
    from huggingface_hub import errors

    named = f"the hub model {source.repo!r}"
    match error:
        case errors.GatedRepoError():
            return ConfigError(
                f"{named} is gated: accept its terms at https://huggingface.co/{source.repo}, "
                "then log in with: hf auth login"
            )
        case errors.RevisionNotFoundError():
            return ModelError(f"{named} has no revision {source.revision!r}; see its branches and commits on the hub")
        case errors.RepositoryNotFoundError():
            return ModelError(
                f"the hub shows you no model {source.repo!r}; check the name, or log in with: hf auth login. "
                "Names of the catalogue: cachegraph models list"
            )
        case errors.OfflineModeIsEnabled():
            return ConfigError(f"{named} is not on this disk, and HF_HUB_OFFLINE forbids to fetch it; unset it to pull")
        case errors.HFValidationError():
            return ModelError(f"{source.repo!r} is no valid hub id: {error}")
        case OSError(errno=28):
            return ConfigError(f"the disk is full while fetching {named}; make room, or point HF_HOME to another disk")
    reason = str(error).strip().splitlines()
    return ConfigError(
        f"{named} can't be fetched ({reason[0] if reason else repr(error)}); "
        "check the network and the proxy, then pull again"
    )
