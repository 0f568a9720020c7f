"""Lists the catalogue's models and those on this disk, and removes the latter."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cachegraph.common.did_you_mean import did_you_mean
from cachegraph.errors import ModelError

from ..spec import ModelSpec
from .catalogue import Catalogue, Listed
from .fetch import find
from .progress import silent
from .resolve import describe
from .store import ModelStore, Stored, file_errors, folder_bytes

__all__ = ["CatalogueItem", "Removed", "inventory", "remove"]


@dataclass(frozen=True)
class CatalogueItem:
    """One model, in the catalogue, on this disk, or both. `bytes` is its size here, or what a pull would take."""

    name: str
    description: str
    source: str
    licence: str | None
    licence_url: str | None
    bytes: int | None
    folder: Path | None = None
    identity: str | None = None


class Removed(NamedTuple):
    bytes: int
    left_in: str | None  # a hub model's files, which are not ours to delete


def inventory(catalogue: Catalogue) -> list[CatalogueItem]:
    """The catalogue's models in its order, then what was pulled from elsewhere."""
    items = [_listed(model, catalogue) for model in catalogue.models.values()]
    shown = {item.folder for item in items}
    return items + [_pulled(model) for model in ModelStore().all() if model.folder not in shown]


def remove(name: str) -> Removed:
    """Delete the pulled model of that name, with what an interrupted pull of it left.

    Raises ModelError if no pulled model, or more than one, has the name.
    """
    store = ModelStore()
    stored = store.all()
    slugs = [model.place.name for model in stored if name in (model.record.name, model.place.name)]
    slugs = slugs or [slug for slug in {*store.slugs(), *store.begun()} if slug == name]
    if not slugs:
        hint = did_you_mean(name, [model.record.name for model in stored], "see what is with: cachegraph models list")
        raise ModelError(f"{name!r} is not pulled, so there is nothing to remove; {hint}")
    if len(slugs) > 1:
        raise ModelError(f"{name!r} is the name of several pulled models; remove one of {', '.join(map(repr, slugs))}")
    elsewhere = next((model.record.folder for model in stored if model.place.name == slugs[0]), None)
    with store.locked(slugs[0], silent), file_errors(store.root):
        return Removed(store.remove(slugs[0]), elsewhere)


def _listed(listed: Listed, catalogue: Catalogue) -> CatalogueItem:
    entry = listed.entry
    try:
        model = find(ModelSpec(source=listed.name), catalogue=catalogue)
    except ModelError:  # its file or folder is not where the catalogue says
        model = None
    return CatalogueItem(
        name=listed.name,
        description=entry.description,
        source=describe(entry.source),
        licence=entry.licence.name,
        licence_url=entry.licence.url,
        bytes=folder_bytes(model.folder) if model else entry.stored_bytes,
        folder=model.folder if model else None,
        identity=model.identity if model else None,
    )


def _pulled(stored: Stored) -> CatalogueItem:
    record = stored.record
    return CatalogueItem(
        name=record.name,
        description="",
        source=record.source,
        licence=record.licence,
        licence_url=record.licence_url,
        bytes=folder_bytes(stored.folder),
        folder=stored.folder,
        identity=record.identity,
    )
