"""cachegraph models: list, pull, remove, describe and check models."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cachegraph.common.human import format_bytes
from cachegraph.errors import ConfigError

from .console import TASK, open_console
from .output import echo, echo_json

if TYPE_CHECKING:
    from cachegraph.engine.catalogue import Catalogue, StoredModel
    from cachegraph.engine.catalogue.inventory import CatalogueItem
    from cachegraph.engine.spec import ModelSpec

__all__ = ["app", "bar", "pull_with_bar"]

app = typer.Typer(name="models", help="The models that agents can run.", no_args_is_help=True)

CatalogueOption = Annotated[
    Path | None,
    typer.Option("--catalogue", help="Your catalogue; its entries override the shipped ones.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# What the options of a model may be.
VALUES = {
    "source": "name a model, such as 'smollm2-135m-instruct'",
    "dtype": "choose auto, bfloat16, float16 or float32",
    "device": "choose auto, cpu, mps, cuda or a GPU by its number, as cuda:1",
}
STAGES = {
    "wait": "waiting for another process that pulls it",
    "fetch": "fetching",
    "verify": "checking the hash",
    "read": "reading the GGUF file",
    "convert": "converting",
    "save": "saving",
}


@app.command("list")
def list_models(catalogue: CatalogueOption = None, as_json: JsonOption = False) -> None:
    """List the models of the catalogue and all pulled models."""
    from cachegraph.engine.catalogue import load_catalogue
    from cachegraph.engine.catalogue.inventory import inventory

    items = inventory(load_catalogue(catalogue))
    if as_json:
        _print_json([_plain(item) for item in items])
        return
    table = Table(box=None, pad_edge=False)
    for title in ("name", "pulled", "size", "licence", "description"):
        table.add_column(title, justify="right" if title == "size" else "left", no_wrap=title != "description")
    for item in items:
        size = format_bytes(item.bytes) if item.bytes else ""
        table.add_row(item.name, "yes" if item.folder else "", size, item.licence or "unknown", item.description)
    open_console().print(table)


@app.command("pull")
def pull_models(
    names: Annotated[list[str], typer.Argument(help="Catalogue names, hub ids or .gguf files.")],
    revision: Annotated[str | None, typer.Option(help="A commit, tag or branch of a hub model.")] = None,
    catalogue: CatalogueOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch models and convert them if needed; they then load offline."""
    from cachegraph.engine.catalogue import load_catalogue

    known = load_catalogue(catalogue)
    pulled = [pull_with_bar(_model(name, revision), known) for name in names]
    if as_json:
        _print_json([asdict(model) for model in pulled])
    else:
        for model in pulled:
            echo(f"{model.name}: {model.folder}")


@app.command("remove")
def remove_model(
    name: Annotated[str, typer.Argument(help="A name that `cachegraph models list` shows.")],
    as_json: JsonOption = False,
) -> None:
    """Delete a pulled model from this disk."""
    from cachegraph.engine.catalogue.inventory import remove

    removed = remove(name)
    if as_json:
        _print_json({"name": name, "freed_bytes": removed.bytes, "left_in": removed.left_in})
        return
    echo(f"{name}: removed, {format_bytes(removed.bytes)} are free again")
    if removed.left_in:
        echo(f"The hub's files stay in {removed.left_in}, which other programs may use; to delete them: hf cache rm")


@app.command("info")
def show_model(
    name: Annotated[str, typer.Argument(help="A catalogue name, hub id, folder or .gguf file.")],
    catalogue: CatalogueOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's source, licence and folder."""
    from cachegraph.engine.catalogue import find, load_catalogue

    known = load_catalogue(catalogue)
    facts = _facts(name, known, find(_model(name), catalogue=known))
    if as_json:
        _print_json(facts)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        if value not in (None, ""):
            table.add_row(key.replace("_", " "), format_bytes(value) if key == "bytes" else str(value))
    open_console().print(table)


@app.command("check")
def check_model(
    name: Annotated[str, typer.Argument(help="A catalogue name, hub id, folder or .gguf file.")],
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Check the engine's computation of a model against transformers, even if it was checked before."""
    from cachegraph.engine.pool import leased

    with leased(_model(name, dtype=dtype, device=device), Path(), recheck=True) as engine:
        model = engine.model
        verdict, where = model.verdict, {"device": str(model.device), "dtype": str(model.dtype).removeprefix("torch.")}
    if as_json:
        _print_json({"name": name, **where, **verdict.to_dict()})
        return
    table = Table(box=None, pad_edge=False)
    for title in ("compared", "differs by", "may differ by", ""):
        table.add_column(title, justify="left" if title in ("compared", "") else "right")
    for comparison in verdict.compared:
        table.add_row(
            comparison.what, f"{comparison.error:.1e}", f"{comparison.limit:.1e}", "" if comparison.passed else "fails"
        )
    open_console().print(table)
    may = {
        "cache edges": verdict.why_no_cache,
        "moving its keys": verdict.why_no_rotation,
        "kernels": verdict.why_no_kernels,
    }
    for what, reason in may.items():
        echo(f"{what}: {'yes' if reason is None else f'no, {reason}'}")


def _model(name: str, revision: str | None = None, **options: str) -> "ModelSpec":
    """The model that a command line names. Raises ConfigError."""
    from pydantic import ValidationError

    from cachegraph.engine.spec import ModelSpec

    try:
        return ModelSpec.model_validate({"source": name, "revision": revision, **options})
    except ValidationError as error:
        wrong = error.errors()[0]
        key = str(wrong["loc"][0])
        raise ConfigError(f"{key} can't be {wrong['input']!r}; {VALUES.get(key, wrong['msg'])}") from error


def _facts(name: str, catalogue: "Catalogue", model: "StoredModel | None") -> dict[str, Any]:
    from cachegraph.engine.catalogue.inventory import inventory

    listed = catalogue.get(name)
    item = next((item for item in inventory(catalogue) if item.name in (name, model and model.name)), None)
    facts: dict[str, Any] = {"name": name, "description": listed.entry.description if listed else ""}
    facts |= {
        "source": model.source if model else item.source if item else None,
        "licence": item.licence if item else model.licence if model else None,
        "licence_url": item.licence_url if item else None,
        "sha256": listed.entry.sha256 if listed else None,
        "pulled": model is not None,
        "identity": model.identity if model else None,
        "folder": str(model.folder) if model else None,
        "bytes": item.bytes if item else None,
    }
    return facts


def pull_with_bar(spec: "ModelSpec", catalogue: "Catalogue", folder: Path | None = None) -> "StoredModel":
    """Pull a model with a progress bar. Relative paths start at `folder`."""
    from cachegraph.engine.catalogue import pull

    console = open_console(stderr=True)
    with bar(spec.source, console) as progress:
        return pull(spec, folder, catalogue, progress, console.print)


@contextmanager
def bar(name: str, console: Console | None = None) -> Iterator[Any]:
    """A progress bar per stage; finished ones stay visible. Shows nothing if stderr is not a terminal."""
    console = console or open_console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn(TASK, markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for earlier in tasks.values():
                    bars.stop_task(earlier)
                tasks[stage] = bars.add_task(f"{name}: {STAGES.get(stage, stage)}", total=None, count="")
            count = f"{format_bytes(done)} of {format_bytes(total)}" if stage in ("fetch", "verify") and total else ""
            bars.update(tasks[stage], completed=done, total=total or None, count=count)

        yield progress


def _plain(item: "CatalogueItem") -> dict[str, Any]:
    return asdict(item) | {"folder": str(item.folder) if item.folder else None, "pulled": item.folder is not None}


def _print_json(value: Any) -> None:
    echo_json(json.dumps(value, indent=2, default=str))
