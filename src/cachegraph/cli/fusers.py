"""cachegraph fusers: what there is on this disk, and bringing fusers in, out, and to and from the hub."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cachegraph.common.human import format_bytes, format_count
from cachegraph.common.printable import printable_line

from .console import open_console, width_of
from .models import bar
from .output import echo, echo_json

if TYPE_CHECKING:
    from cachegraph.channels.fusers.inventory import Facts, Item

__all__ = ["app"]

app = typer.Typer(name="fusers", help="The trained networks that cache edges need.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FuserName = Annotated[str, typer.Argument(metavar="FUSER", help="A name, a folder, or a hub: name that was pulled.")]


@app.command("list")
def list_fusers(as_json: JsonOption = False) -> None:
    """Show the installed and the shipped fusers, each opened and verified; damaged ones with the reason."""
    from cachegraph.channels.fusers.inventory import inventory

    items = inventory()
    if as_json:
        _print_json([_listed(item) for item in items])
        return
    if not items:
        echo("no fusers yet: install one with cachegraph fusers import, or fetch one with cachegraph fusers pull")
        return
    console = open_console()
    table = _table(items)
    if width_of(table, console) <= console.width:
        console.print(table)
    else:  # names are never cut or broken
        for item in items:
            _print_item(item, console)
    for item in items:
        if item.problem:
            echo(printable_line(f"{item.name} is damaged: {item.problem}"))


@app.command("info")
def show_fuser(name: FuserName, as_json: JsonOption = False) -> None:
    """Show all that a fuser's card says, how large it is, and how many of its gates are open."""
    from cachegraph.channels.fusers.inventory import describe, locate
    from cachegraph.engine.catalogue.store import folder_bytes

    folder = locate(name)
    facts, size = describe(folder), folder_bytes(folder)
    if as_json:
        own = {"name": name, "folder": str(folder), "bytes": size, "parameters": facts.parameters}
        gates = {"gates_open": facts.gates_open, "open_layers": facts.open_layers}
        _print_json(own | gates | {"card": facts.card.model_dump(mode="json")})
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for title, value in _rows(facts).items():
        table.add_row(title, _shown(value))
    table.add_row("size", format_bytes(size))
    table.add_row("folder", _shown(str(folder)))
    open_console().print(table)


@app.command("evidence")
def add_evidence(
    name: FuserName,
    comparison: Annotated[Path, typer.Argument(help="What `cachegraph compare --save` wrote.", show_default=False)],
) -> None:
    """Put on a fuser's card what a comparison shows: its own cache against another example's.

    With an interval above zero, `channel: auto` and `--channel cache` pick the fuser by itself where it fits.
    """
    from cachegraph.channels.fusers.inventory import locate
    from cachegraph.evaluation.comparison import Comparison
    from cachegraph.evaluation.evidence import record_evidence

    found = record_evidence(locate(name), Comparison.load(comparison))
    echo(f"{name}: {found}")
    if not found.shows_communication:
        echo("the interval is not above zero, so no edge picks the fuser by this; naming it still works")


@app.command("import")
def import_fuser(
    folder: Annotated[Path, typer.Argument(help="A folder of ours, or as the authors of Cache-to-Cache publish.")],
    name: Annotated[str | None, typer.Option(help="What recipes call it.", show_default="the folder's name")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a fuser of that name.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Verify a folder's fuser and install it; one that joins several sharers becomes a fuser for each."""
    from cachegraph.channels.fusers.install import import_fusers

    installed = import_fusers(folder, name, force=force)
    if as_json:
        _print_json([{"name": path.name, "folder": str(path)} for path in installed])
        return
    for path in installed:
        echo(f"{path.name}: {path}")


@app.command("export")
def export_fuser(
    name: FuserName,
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    format: Annotated[
        Literal["ours", "reference"],
        typer.Option(help="reference: as the authors of Cache-to-Cache publish; c2c fusers only."),
    ] = "ours",
) -> None:
    """Write a fuser to a folder."""
    from cachegraph.channels.fusers.install import export_fuser
    from cachegraph.channels.fusers.inventory import locate

    export_fuser(locate(name), folder, format)
    echo(f"{name}: {folder}")


@app.command("pull")
def pull_fuser(
    name: Annotated[str, typer.Argument(help="hub:ORGANISATION/NAME, then @REVISION and /FOLDER where needed.")],
    as_json: JsonOption = False,
) -> None:
    """Fetch a fuser of the Hugging Face hub and verify it; recipes use the same name."""
    from cachegraph.channels.fusers.install import pull_fuser
    from cachegraph.channels.fusers.inventory import describe

    with bar(name) as progress:
        folder = pull_fuser(name, progress)
    facts = describe(folder)
    if as_json:
        _print_json({"name": name, "folder": str(folder), "parameters": facts.parameters})
    else:
        echo(f"{name}: {folder}")


@app.command("push")
def push_fuser(
    name: FuserName,
    target: Annotated[str, typer.Argument(help="hub:ORGANISATION/NAME, then /FOLDER where needed.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload a fuser to the Hugging Face hub, with a model card made from its card."""
    from cachegraph.channels.fusers.hub.push import push_fuser
    from cachegraph.channels.fusers.inventory import locate

    pushed = push_fuser(locate(name), target, private=private, quiet=not sys.stderr.isatty())
    pinned = str(pushed)
    if as_json:
        _print_json({"name": name, "fuser": target, "pinned": pinned, "commit": pushed.revision})
        return
    echo(f"{name}: pushed; recipes name it {target}, or, to pin these very weights, {pinned}")


@app.command("note-rows")
def note_rows(
    name: FuserName,
    recipe: Annotated[Path, typer.Argument(help="The training recipe that it was trained from.")],
    data_folder: Annotated[
        Path | None, typer.Option(help="Where the recipe's data files lie; by default beside it.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Keep on a fuser's card which rows it was trained on, for fusers of versions that did not."""
    from cachegraph.channels.fusers.inventory import locate
    from cachegraph.training.note_rows import note_rows

    rows = note_rows(locate(name), recipe, data_folder)
    if as_json:
        _print_json({"name": name, "rows": rows.rows, "part": rows.part})
    else:
        echo(f"{name}: its card tells {rows.rows:,} rows from others")


@app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="An installed fuser that `cachegraph fusers list` shows.")],
    as_json: JsonOption = False,
) -> None:
    """Delete an installed fuser from this disk."""
    from cachegraph.channels.fusers.inventory import remove_fuser

    freed = remove_fuser(name)
    if as_json:
        _print_json({"name": name, "freed_bytes": freed})
    else:
        echo(f"{name}: removed, {format_bytes(freed)} are free again")


def _table(items: "Sequence[Item]") -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("name", "sharer → receiver", "kind", "parameters", "size", "where"):
        table.add_column(title, justify="right" if title in ("parameters", "size") else "left", no_wrap=True)
    for item in items:
        pair, kind, count = _facts(item)
        table.add_row(*map(_shown, (item.name, pair, kind, count, format_bytes(item.bytes), item.where)))
    return table


def _print_item(item: "Item", console: Console) -> None:
    pair, kind, count = _facts(item)
    facts = (kind, f"{count} parameters" if count else "", format_bytes(item.bytes), item.where)
    console.print(_shown(item.name), soft_wrap=True)
    for line in filter(None, (pair, ", ".join(filter(None, facts)))):
        console.print(Text.assemble("    ", _shown(line)), soft_wrap=True)


def _facts(item: "Item") -> tuple[str, str, str]:
    """The pair, the kind and the number of parameters, as they are shown."""
    if item.facts is None:
        return "", "damaged", ""
    card = item.facts.card
    pair = f"{card.sharer.name} → {card.receiver.name}"
    return pair, f"{card.kind} {card.architecture}", format_count(item.facts.parameters)


def _listed(item: "Item") -> dict[str, Any]:
    listed: dict[str, Any] = {"name": item.name, "where": item.where, "folder": str(item.folder), "bytes": item.bytes}
    card = item.facts.card if item.facts else None
    return listed | {
        "receiver": card.receiver.name if card else None,
        "sharer": card.sharer.name if card else None,
        "kind": card.kind if card else None,
        "architecture": card.architecture if card else None,
        "parameters": item.facts.parameters if item.facts else None,
        "gates_open": item.facts.gates_open if item.facts else None,
        "problem": item.problem,
    }


def _rows(facts: "Facts") -> dict[str, str]:
    from cachegraph.channels.fusers.files.card_text import card_words

    rows = card_words(facts.card, facts.parameters)
    rows["metrics"] = ", ".join(f"{name} {value:.6g}" for name, value in facts.card.metrics.items()) or "none stated"
    rows["licence"] = facts.card.licence or "unknown"
    if facts.gates_open is not None and facts.open_layers is not None:
        some = 0 < facts.gates_open < 1
        rows["gates open"] = f"{facts.gates_open:.1%}" + (
            f", in layers {', '.join(map(str, facts.open_layers))}" if some else ""
        )
    return rows


def _shown(text: str) -> Text:
    """A stranger's words in a table, not read as markup."""
    return Text(printable_line(text))


def _print_json(value: Any) -> None:
    echo_json(json.dumps(value, indent=2))
