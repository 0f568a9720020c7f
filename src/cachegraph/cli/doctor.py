"""cachegraph doctor: this machine's hardware and versions, and problems that keep models from running."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from cachegraph.common.human import format_bytes
from cachegraph.errors import ConfigError

from .console import open_console
from .output import echo_json

if TYPE_CHECKING:
    from cachegraph.engine.diagnostics import Machine

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show this machine's hardware and versions. Exits with 3 if something keeps models from running."""
    from cachegraph.engine.diagnostics import examine

    machine = examine()
    if as_json:
        echo_json(json.dumps(asdict(machine), indent=2))
    else:
        _print(machine)
    if machine.problems:
        raise ConfigError("; ".join(machine.problems))


def _print(machine: "Machine") -> None:
    from cachegraph.engine.diagnostics import budget_words

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    facts = {
        "versions": ", ".join(f"{name} {number}" for name, number in machine.versions.items()),
        "processor": f"{machine.processor}, {machine.cores} cores, {machine.threads} threads",
        "instructions": ", ".join(machine.features) or "unknown",
        "kernels": machine.kernels,
        "auto": machine.auto,
        "KV memory": budget_words(),
        "home": f"{machine.home}, {format_bytes(machine.home_free_bytes)} free",
        "data": machine.data if machine.data != machine.home else "",
        "temporary": f"{machine.temporary}, {format_bytes(machine.temporary_free_bytes)} free",
        "models": ", ".join(f"{name} ({format_bytes(size)})" for name, size in machine.models.items()) or "none yet",
    }
    for name, value in facts.items():
        if value:
            table.add_row(name, Text(value))
    console = open_console()
    console.print(table)
    console.print(_devices(machine))
    for note in machine.notes:
        console.print(Text.assemble(("note", "yellow"), f": {note}"), soft_wrap=True)


def _devices(machine: "Machine") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("device", "free", "dtype", "KV memory of an engine"):
        table.add_column(title, no_wrap=True)
    for device in machine.devices:
        table.add_row(device.name, format_bytes(device.free_bytes), device.dtype, format_bytes(device.kv_budget_bytes))
    return table
