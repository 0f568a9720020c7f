"""Resolves a recipe's `source` to a catalogue name, a hub id, a folder or a .gguf file."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cachegraph.common.did_you_mean import did_you_mean
from cachegraph.errors import ModelError

from ..spec import ModelSpec
from .catalogue import Catalogue, CatalogueEntry, FolderSource, GgufSource, HubSource, WheelSource

__all__ = ["Wanted", "describe", "resolve"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
MAX_TEMPLATE_BYTES = 1_000_000


@dataclass(frozen=True)
class Wanted:
    """A model that was asked for, by its source. Paths in it are absolute."""

    name: str
    source: HubSource | FolderSource | GgufSource | WheelSource
    entry: CatalogueEntry | None = None
    chat_template: str | None = None

    @property
    def path(self) -> Path:
        """Of a folder or a .gguf file. Raises TypeError for a source of another kind."""
        if isinstance(self.source, FolderSource | GgufSource):
            return Path(self.source.path)
        raise TypeError(f"{self.source.kind} sources have no path")

    @property
    def licence(self) -> str | None:
        return self.entry.licence.name if self.entry else None

    @property
    def described(self) -> str:
        """The source in one line."""
        return describe(self.source)

    @property
    def key(self) -> str | None:
        """What a stored model must have been made from to be the one that is wanted; None: its own slug tells."""
        if isinstance(self.source, HubSource):
            return f"hub:{self.source.repo}@{self.source.revision or ''}"
        if isinstance(self.source, WheelSource) and self.entry is not None:
            return f"sha256:{self.entry.sha256}"
        return None

    @property
    def slug(self) -> str:
        """The folder of a hub or wheel model in the store."""
        revision = self.source.revision if isinstance(self.source, HubSource) else None
        listed = self.entry.source if self.entry else None
        if isinstance(listed, HubSource) and listed.revision == revision:
            revision = None
        return self.name.replace("/", "--") + (f"@{quote(revision, safe='')}" if revision else "")


def describe(source: HubSource | FolderSource | GgufSource | WheelSource) -> str:
    """A source in one line, for records and tables."""
    match source:
        case HubSource(repo=repo, revision=revision):
            return f"hub {repo}" + (f"@{revision}" if revision else "")
        case WheelSource():
            packages = dict.fromkeys(f"{file.package}=={file.version}" for file in source.files)
            return "wheel " + " + ".join(packages)
        case FolderSource(path=path) | GgufSource(path=path):
            return f"{source.kind} {path}"


def resolve(spec: ModelSpec, base: Path, catalogue: Catalogue) -> Wanted:
    """Find out what `spec` names. Relative paths start at `base`, the recipe's folder.

    Raises ModelError if it names nothing, or gives a revision of what has none.
    """
    wanted = _from_catalogue(spec, catalogue) or _from_disk(spec, base) or _from_hub(spec)
    if wanted is None:
        raise ModelError(_unknown(spec.source, base, catalogue))
    if spec.revision is not None and not isinstance(wanted.source, HubSource):
        raise ModelError(
            f"model {spec.source!r} is not a hub model, so it has no revision {spec.revision!r}; remove it"
        )
    if spec.chat_template is None:
        return wanted
    template = _read_template(spec.chat_template, base)
    return Wanted(wanted.name, wanted.source, wanted.entry, template)


def _from_catalogue(spec: ModelSpec, catalogue: Catalogue) -> Wanted | None:
    listed = catalogue.get(spec.source)
    if listed is None:
        return None
    source = listed.entry.source
    if isinstance(source, HubSource) and spec.revision is not None:
        source = source.model_copy(update={"revision": spec.revision})
    elif isinstance(source, FolderSource | GgufSource):
        source = source.model_copy(update={"path": str(_absolute(source.path, listed.folder))})
    return Wanted(listed.name, source, listed.entry, listed.chat_template_text())


def _from_disk(spec: ModelSpec, base: Path) -> Wanted | None:
    path = _absolute(spec.source, base)
    if spec.source.endswith(".gguf"):
        return Wanted(path.stem, GgufSource(kind="gguf", path=str(path)))
    if spec.source.startswith(("/", "./", "../", "~")) or path.is_dir():
        return Wanted(path.name, FolderSource(kind="folder", path=str(path)))
    return None


def _from_hub(spec: ModelSpec) -> Wanted | None:
    if not HUB_ID.fullmatch(spec.source):
        return None
    return Wanted(spec.source, HubSource(kind="hub", repo=spec.source, revision=spec.revision))


def _absolute(path: str, base: Path) -> Path:
    return (base / Path(path).expanduser()).resolve()


def _unknown(source: str, base: Path, catalogue: Catalogue) -> str:
    near = did_you_mean(source, catalogue.models, most=3, cutoff=0.4)
    hint = f"; {near}" if near else "."
    return (
        f"there is no model {source!r}: it is not a catalogue name, a hub id (organisation/name), or a "
        f"folder or .gguf file in {str(base.resolve())!r}{hint} See all names with: cachegraph models list"
    )


def _read_template(name: str, base: Path) -> str:
    """Read a recipe's template. A recipe may come from a stranger, so it may only name files of its own folder."""
    path = _absolute(name, base)
    if not path.is_relative_to(base.resolve()):
        raise ModelError(f"the chat template {name!r} leaves the recipe's folder; put the file beside the recipe")
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device might never end
            raise ModelError(f"the chat template {name!r} is not a regular file; put a file there")
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise ModelError(f"the chat template {name!r} is larger than {MAX_TEMPLATE_BYTES:,} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the chat template {name!r} can't be read in {str(base.resolve())!r}: {error}") from error
