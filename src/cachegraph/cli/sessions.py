"""cachegraph sessions: list, show and delete the conversations of --session."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cachegraph.common.human import format_bytes
from cachegraph.common.printable import printable
from cachegraph.errors import InputError

from .console import open_console
from .output import echo, echo_json

__all__ = ["app"]

app = typer.Typer(
    name="sessions", help="List, show and delete conversations that agents remember.", no_args_is_help=True
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_sessions(as_json: JsonOption = False) -> None:
    """List sessions: graph, turns, last use, and size of their caches."""
    from cachegraph.agents.sessions.session_files import caches_of, read, sessions

    rows: list[dict[str, Any]] = []
    for name in sessions():
        try:
            record = read(name)
        except InputError as error:
            echo(f"cachegraph: {error}", err=True)
            continue
        if record is not None:
            turns = sum(len(agent.exchanges) for agent in record.agents.values())
            about = {"session": name, "graph": record.graph, "turns": turns, "updated": record.updated}
            rows.append({**about, "cache_bytes": caches_of(name)})
    if as_json:
        echo_json(json.dumps(rows))
        return
    if not rows:
        echo("no sessions yet: start one with cachegraph run --session NAME")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("session", "graph", "turns", "last used", "caches"):
        table.add_column(title, justify="right" if title in ("turns", "caches") else "left", no_wrap=True)
    for row in rows:
        size = format_bytes(row["cache_bytes"]) if row["cache_bytes"] else "-"
        table.add_row(str(row["session"]), str(row["graph"]), str(row["turns"]), str(row["updated"]), size)
    open_console().print(table)


@app.command("show")
def show_session(name: str, as_json: JsonOption = False) -> None:
    """Print a session: each agent's messages and replies."""
    from cachegraph.agents.sessions.session_files import read

    record = read(name)
    if record is None:
        raise InputError(f"there is no session {name!r}; `cachegraph sessions list` shows them")
    if as_json:
        echo_json(record.model_dump_json())
        return
    console = open_console()
    for agent, remembered in record.agents.items():
        console.rule(Text(agent, "bold"))
        for number, exchange in enumerate(remembered.exchanges):
            style = "dim" if number < remembered.left_out else ""
            for role, content in (*exchange.messages, (agent, exchange.reply)):
                console.print(Text.assemble((f"{role}: ", "bold"), (printable(content), style)))
        if remembered.left_out:
            console.print(Text(f"the first {remembered.left_out} are no longer part of its prompt", "yellow"))


@app.command("rm")
def remove_sessions(names: list[str]) -> None:
    """Delete sessions, with their messages and caches."""
    from cachegraph.agents.sessions.session_files import remove

    for name in names:
        echo(f"{name}: {format_bytes(remove(name))} are free again")
