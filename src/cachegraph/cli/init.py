"""cachegraph init: write a recipe to start from."""

import re
import shlex
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from cachegraph.errors import ConfigError, InputError

from .output import echo

__all__ = ["register"]


class RecipeTemplate(StrEnum):
    """The recipes that `init` writes."""

    relay = "relay"  # two models, a cache edge between them
    panel = "panel"  # several agents and a judge
    review = "review"  # a loop of a writer and a critic
    endpoint = "endpoint"  # a model behind an endpoint, and a local one


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(init)


def init(
    file: Annotated[
        Path | None,
        typer.Argument(help="The file to write, or a folder for it; by default named after the template."),
    ] = None,
    template: Annotated[
        RecipeTemplate,
        typer.Option("--template", "-t", help="Two models; a judge; a loop; a model behind an endpoint."),
    ] = RecipeTemplate.relay,
) -> None:
    """Write a recipe to start from; an existing file is never overwritten."""
    path = _path(file, template)
    text = (resources.files("cachegraph") / "recipes" / "templates" / f"{template.value}.yaml").read_text("utf-8")
    _write_new(path, _named(text, template.value, path.stem))
    echo(f"wrote {path}; next:")
    shown = shlex.quote(str(path))
    echo(f"  cachegraph show {shown}")
    echo(f"  cachegraph {'validate' if template is RecipeTemplate.endpoint else 'run'} {shown}")


def _path(file: Path | None, template: RecipeTemplate) -> Path:
    """Return the path of the recipe. A name without a suffix gets one."""
    if file is None:
        return Path(f"{template.value}.yaml")
    try:
        if file.is_dir():
            return file / f"{template.value}.yaml"
    except (OSError, ValueError) as error:
        raise InputError(f"{str(file)!r} can't be a file's name; choose another") from error
    return file if file.suffix in (".yaml", ".yml") else file.with_name(f"{file.name}.yaml")


def _named(text: str, template: str, stem: str) -> str:
    """Name the recipe after its file, as far as a recipe's name allows."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100]
    return text.replace(f"\nname: {template}\n", f"\nname: {_yaml_text(name)}\n", 1) if name else text


def _yaml_text(name: str) -> str:
    """Quote a name that YAML would read as a number, a date or a truth value."""
    import yaml

    return name if yaml.safe_load(name) == name else f'"{name}"'


def _write_new(path: Path, text: str) -> None:
    """Write a file that does not exist. Raises InputError if it does, ConfigError if it can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except (OSError, ValueError) as error:
        if isinstance(error, FileExistsError) and error.filename == str(path):
            raise InputError(f"{str(path)!r} exists already and stays as it is; give another name") from error
        why = getattr(error, "strerror", None) or "the path can't be used"
        raise ConfigError(f"can't write {str(path)!r}: {why}; choose another file") from error
