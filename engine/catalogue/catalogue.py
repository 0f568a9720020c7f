"""The catalogue: names of models, and where each one's weights come from.

One ships with the package; a user's own file is laid over it and wins by name. Knows no network and no torch.
"""

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, PositiveInt, ValidationError, model_validator

from cachegraph.errors import InputError

from ..spec import Strict

__all__ = [
    "Catalogue",
    "CatalogueEntry",
    "FolderSource",
    "GgufSource",
    "HubSource",
    "Licence",
    "Listed",
    "Source",
    "WheelFile",
    "WheelSource",
    "load_catalogue",
]

ENVIRONMENT = "CACHEGRAPH_CATALOGUE"
MAX_BYTES = 1_000_000


def _inside(member: str) -> str:
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member:
        raise ValueError(f"{member!r} leaves the wheel; name a file inside it")
    return member


class WheelFile(Strict):
    """One file inside one wheel of the Python package index."""

    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]*$")]
    file: Annotated[str, Field(min_length=1), AfterValidator(_inside)]

    def __str__(self) -> str:
        return f"{self.package}=={self.version}:{self.file}"


class HubSource(Strict):
    """A repository of the Hugging Face hub."""

    kind: Literal["hub"]
    repo: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+$")]
    revision: Annotated[str | None, Field(description="A commit, tag or branch; by default the main branch.")] = None


class FolderSource(Strict):
    """A folder that transformers can load, used where it lies."""

    kind: Literal["folder"]
    path: str


class GgufSource(Strict):
    """A .gguf file on this machine."""

    kind: Literal["gguf"]
    path: str


class WheelSource(Strict):
    """A GGUF file in a wheel, or in the parts that several wheels carry, in the order they are joined."""

    kind: Literal["wheel"]
    package: str | None = None
    version: str | None = None
    file: str | None = None
    parts: tuple[WheelFile, ...] = ()
    checksums: Annotated[
        WheelFile | None, Field(description="A file in sha256sum's format that must state the same sha256.")
    ] = None

    @model_validator(mode="after")
    def _either_whole_or_parts(self) -> "WheelSource":
        single = (self.package, self.version, self.file)
        if bool(self.parts) == any(single) or (any(single) and not all(single)):
            raise ValueError("a wheel source is either package, version and file, or a list of parts of those three")
        if self.parts == ():
            self._whole()
        return self

    def _whole(self) -> WheelFile:
        return WheelFile.model_validate({"package": self.package, "version": self.version, "file": self.file})

    @property
    def files(self) -> tuple[WheelFile, ...]:
        """The members to join, in order."""
        return self.parts or (self._whole(),)


Source = Annotated[HubSource | FolderSource | GgufSource | WheelSource, Field(discriminator="kind")]


class Licence(Strict):
    """What the weights may be used for."""

    name: str
    url: str | None = None
    show_on_pull: Annotated[str | None, Field(description="Shown when the model is first pulled.")] = None


class CatalogueEntry(Strict):
    """One model of a catalogue."""

    source: Source
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the whole GGUF file.")] = (
        None
    )
    licence: Licence
    description: str = ""
    download_bytes: PositiveInt | None = None
    stored_bytes: PositiveInt | None = None
    chat_template: Annotated[
        str | None,
        Field(
            description="For a model that ships no chat template: Jinja, or the name of a file beside the catalogue."
        ),
    ] = None

    @model_validator(mode="after")
    def _wheels_are_verified(self) -> "CatalogueEntry":
        if isinstance(self.source, WheelSource) and self.sha256 is None:
            raise ValueError("a wheel source needs the sha256 of the whole GGUF file")
        return self


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class _File(Strict):
    version: Literal[1]
    models: dict[Name, CatalogueEntry]


@dataclass(frozen=True)
class Listed:
    """An entry under its name, with the folder that its relative paths start from."""

    name: str
    entry: CatalogueEntry
    folder: Path

    def chat_template_text(self) -> str | None:
        """The entry's template, read from its file where it names one. Raises InputError if it can't be read."""
        template = self.entry.chat_template
        if template is None or "{" in template or "\n" in template:
            return template
        path = self.folder / template
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the chat template {template!r} of model {self.name!r} can't be read: {error}") from error


@dataclass(frozen=True)
class Catalogue:
    """All names, the user's laid over the shipped ones."""

    models: dict[str, Listed]

    def get(self, name: str) -> Listed | None:
        return self.models.get(name)


def load_catalogue(path: Path | None = None) -> Catalogue:
    """Read the shipped catalogue and over it `path`, or else the file that CACHEGRAPH_CATALOGUE names."""
    with resources.as_file(resources.files("cachegraph") / "recipes" / "models.yaml") as shipped:
        models = _read(shipped)
    if path is None and (named := os.environ.get(ENVIRONMENT)):
        path = Path(named).expanduser()
    if path is not None:
        models |= _read(path)
    return Catalogue(models)


def _read(path: Path) -> dict[str, Listed]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise InputError(f"the catalogue {str(path)!r} is larger than {MAX_BYTES:,} bytes; is it the right file?")
        parsed = _File.model_validate(yaml.load(text, _Loader))  # noqa: S506, a SafeLoader
    except OSError as error:
        raise InputError(f"the catalogue {str(path)!r} can't be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the catalogue {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise InputError(f"the catalogue {str(path)!r} is wrong: {_problems(error)}") from error
    return {name: Listed(name, entry, path.parent) for name, entry in parsed.models.items()}


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}" for problem in error.errors())


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which a short file can make enormous, and without keys given twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
