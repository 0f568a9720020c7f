"""The store of pulled models: one folder a model, with a record that is written last.

A folder without a record that this version understands is not a model. Models are made in a partial folder that is
renamed at the end, so a model is either whole or absent.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cachegraph import __version__
from cachegraph.common.human import format_bytes
from cachegraph.common.paths import home
from cachegraph.errors import ConfigError

from .progress import Progress

__all__ = [
    "RECORD",
    "GGUFOrigin",
    "ModelRecord",
    "ModelStore",
    "Stored",
    "StoredModel",
    "file_errors",
    "folder_bytes",
    "home",
]

RECORD = "cachegraph.json"


@dataclass(frozen=True)
class StoredModel:
    """A model on this disk, ready to be loaded from `folder` without the network."""

    name: str
    folder: Path
    identity: str  # the same name and weights have the same identity, on every machine
    licence: str | None
    chat_template: str | None  # to be used in place of the model's own
    source: str


class GGUFOrigin(BaseModel):
    """The .gguf file that a model was made from, told apart from a later one of the same name without reading it."""

    model_config = ConfigDict(frozen=True)
    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "GGUFOrigin":
        stat = path.stat()
        return cls(path=str(path), size=stat.st_size, mtime_ns=stat.st_mtime_ns)


class ModelRecord(BaseModel):
    """What cachegraph.json says of a stored model. `key` changes when the same name comes to mean another source."""

    model_config = ConfigDict(frozen=True)
    format: Literal[1] = 1
    name: str
    key: str
    identity: str
    source: str
    revision: str | None = None
    sha256: str | None = None
    licence: str | None = None
    licence_url: str | None = None
    folder: str | None = None  # where the files are, if not next to the record
    origin: GGUFOrigin | None = None
    pulled_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    cachegraph: str = __version__
    transformers: str = Field(default_factory=lambda: version("transformers"))
    conversion: int = 1  # the version of the conversion that made it, of a model from a GGUF file


class Stored(NamedTuple):
    """A record, where it lies, and where the model's files lie."""

    record: ModelRecord
    place: Path
    folder: Path


class ModelStore:
    """The models under one home."""

    def __init__(self, root: Path | None = None):
        self.root = (root or home()) / "models"

    def read(self, slug: str) -> Stored | None:
        """The model of that folder name, or None where there is none, a broken one, or one of another format."""
        place = self.root / slug
        try:
            record = ModelRecord.model_validate_json((place / RECORD).read_bytes())
        except (OSError, ValidationError):
            return None
        folder = Path(record.folder) if record.folder else place
        return Stored(record, place, folder) if (folder / "config.json").is_file() else None

    def slugs(self) -> list[str]:
        """The folder names of models, whole or broken."""
        names = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []
        return [name for name in names if not name.startswith(".")]

    def begun(self) -> list[str]:
        """The folder names of models whose pull was interrupted."""
        return [path.name[len(".partial-") : -9] for path in self.root.glob(".partial-*-????????")]

    def all(self) -> list[Stored]:
        """Every model that is whole, by its folder's name."""
        return [stored for slug in self.slugs() if (stored := self.read(slug))]

    def partial(self, slug: str, key: str) -> Path:
        """The folder to work in; what an interrupted pull of the same source left there is reused."""
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        place = self.root / f".partial-{slug}-{digest}"
        for other in self.root.glob(f".partial-{slug}-????????"):
            if other != place:
                shutil.rmtree(other)
        place.mkdir(parents=True, exist_ok=True)
        return place

    def commit(self, made: Path, slug: str, record: ModelRecord) -> Stored:
        """Write the record into `made` and put that folder into its place, in one rename."""
        (made / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        place, replaced = self.root / slug, self.root / f".replaced-{slug}"
        shutil.rmtree(replaced, ignore_errors=True)
        if place.exists():
            place.rename(replaced)
        made.rename(place)
        shutil.rmtree(replaced, ignore_errors=True)
        return Stored(record, place, Path(record.folder) if record.folder else place)

    def remove(self, slug: str) -> int:
        """Delete a stored model and what pulls of it left; the bytes that are free again."""
        gone = [self.root / slug, *self.root.glob(f".partial-{slug}-????????")]
        freed = sum(folder_bytes(place) for place in gone)
        for place in gone:
            # The record goes first, so that a removal cut short leaves no model that looks whole.
            (place / RECORD).unlink(missing_ok=True)
            if place.exists():
                shutil.rmtree(place)
        return freed

    @contextlib.contextmanager
    def locked(self, slug: str, progress: Progress) -> Iterator[None]:
        """Hold the lock of all processes on changing that model; waits for it."""
        with file_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / f".lock-{slug}")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                progress("wait", 0, 0)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def need_room(self, wanted: int, arithmetic: str) -> None:
        """Raise ConfigError unless `wanted` bytes are free."""
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if wanted > free:
            raise ConfigError(
                f"not enough room on the disk of {str(self.root)!r}: {arithmetic} need {format_bytes(wanted)}, "
                f"{format_bytes(free)} are free; make room, or point CACHEGRAPH_HOME to another disk"
            )


def folder_bytes(folder: Path, ending: str = "") -> int:
    """The sizes of all files below `folder` with this ending of the name.

    What another process deletes during this, a file or a whole folder, counts 0.
    """
    total = 0
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names if name.endswith(ending)):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
    return total


@contextlib.contextmanager
def file_errors(place: Path) -> Iterator[None]:
    """Turn the disk's refusals into a sentence about `place`. Raises it as ConfigError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"the disk of {str(place)!r} is full; make room, or point CACHEGRAPH_HOME to another disk"
            raise ConfigError(f"{what}, then pull again: what was fetched is kept") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise ConfigError(
                f"can't write in {str(place)!r} ({error.strerror}); point CACHEGRAPH_HOME to a folder of yours"
            ) from error
        raise ConfigError(f"can't use the folder {str(place)!r}: {error}") from error
