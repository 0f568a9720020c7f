"""cachegraph runs: list, show, resume and delete stored runs."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cachegraph.common.printable import printable, printable_line
from cachegraph.errors import InputError

from .console import open_console, width_of
from .options import Cluster, exit_if_paused, graphs_on, open_store
from .output import echo, echo_json
from .text_arguments import TextProblem, read_text

if TYPE_CHECKING:
    from cachegraph.graph.store.records import StoredRun

__all__ = ["app"]

app = typer.Typer(name="runs", help="List, show, resume and delete stored runs.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunId = Annotated[str, typer.Argument(metavar="ID", help="A run's id, or a prefix of it.")]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LEAST_REPLY = 24  # columns; replies are not shown in fewer
WHOLE = ("-", "eos", "stop")
COLOURS = {"finished": "green", "running": "cyan", "paused": "yellow", "interrupted": "yellow"}


@app.command("list")
def list_runs(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many runs.")] = 20,
    skip: Annotated[int, typer.Option(min=0, help="How many of the newest runs to skip.")] = 0,
    graph: Annotated[str | None, typer.Option(help="Only runs of this graph.", show_default=False)] = None,
    status: Annotated[
        str | None,
        typer.Option(help="finished, partial, failed, cancelled, interrupted, paused or running.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the newest runs."""
    newest = open_store().list(limit, skip=skip, graph=graph, status=status)
    if as_json:
        echo_json(json.dumps([asdict(run) for run in newest], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("id", "graph", "status", "begun", "seconds", "turns"):
        no_wrap = title != "graph"  # a long name is wrapped, not cut
        right = title in ("seconds", "turns")
        table.add_column(title, justify="right" if right else "left", no_wrap=no_wrap, overflow="fold")
    for run in newest:
        figures = (f"{run.seconds:.1f}", str(run.turns))
        table.add_row(run.id, run.graph, _status(run.status), _when(run.created), *figures)
    open_console().print(table)
    if len(newest) == limit:
        echo(f"More: --skip {skip + limit}", err=True)


@app.command("show")
def show_run(
    run: RunId,
    turn: Annotated[str | None, typer.Option(help="Print only the reply of this turn.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run: its inputs, what each agent did, and what stopped it."""
    stored = open_store().get(run)
    if turn is not None:
        known = {stored_turn.turn: stored_turn.recorded for stored_turn in stored.turns}
        if turn not in known:
            raise InputError(f"run {stored.id!r} has finished no turn {turn!r}; it has {', '.join(known) or 'none'}")
        echo_json(json.dumps(asdict(known[turn]), indent=2) if as_json else known[turn].text or "")
    elif as_json:
        echo_json(json.dumps(stored.to_dict(), indent=2))
    else:
        _print(stored)


@app.command("resume")
def resume_run(
    run: RunId,
    answer: Annotated[
        str | None, typer.Option("--answer", "-a", help="The answer to a paused run's question.", show_default=False)
    ] = None,
    answer_file: Annotated[
        Path | None, typer.Option(help="A file with the answer; - is stdin.", show_default=False, allow_dash=True)
    ] = None,
    turn: Annotated[
        str | None, typer.Option(help="The turn whose question it answers, if there are several.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the reply.")] = False,
    cluster: Cluster = None,
) -> None:
    """Continue a run where it stopped. Finished turns do not run again."""
    from cachegraph.graph.graph import Graph

    from .fetch import fetch_fusers, fetch_models
    from .progress_view import run_and_print

    store = open_store()
    stored = store.get(run)
    if answer_file is not None:
        answer = _read(answer, answer_file)
    for note in _changes(stored):
        echo(note, err=True)
    with graphs_on(cluster, [Graph.from_run(stored.id, store)]) as (graph,), graph:
        fetch_models(graph.spec, graph.folder, cluster)
        fetch_fusers(graph.spec, graph.folder)
        stream = graph.stream_resumed(stored.id, answer=answer, turn=turn, store=store)
        result = run_and_print(stream, graph.output, quiet or as_json)
    if as_json:
        echo_json(result.to_json())
    elif quiet:
        echo(result.text)
    exit_if_paused([result])


@app.command("rm")
def remove_runs(
    runs: Annotated[list[str], typer.Argument(metavar="ID...", help="Runs' ids, or prefixes of them.")],
    as_json: JsonOption = False,
) -> None:
    """Delete runs from the store."""
    removed = open_store().remove(*runs)
    echo_json(json.dumps(removed) if as_json else f"removed {', '.join(removed)}")


@app.command("prune")
def prune_runs(
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Such as 90m, 12h, 30d or 8w.")],
    as_json: JsonOption = False,
) -> None:
    """Delete all runs started longer ago than AGE, except running ones."""
    number = open_store().prune(_seconds(older_than))
    echo_json(json.dumps({"removed": number}) if as_json else f"removed {number} run{'s' * (number != 1)}")


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", age)
    if match is None:
        raise InputError(f"--older-than needs a number and a unit, such as 90m, 12h, 30d or 8w, got {age!r}")
    return float(match[1]) * UNITS[match[2]]


def _read(answer: str | None, file: Path) -> str:
    if answer is not None:
        raise InputError("--answer and --answer-file are both given; give one")
    try:
        text = read_text(str(file))
    except TextProblem as error:
        raise InputError(f"the answer can't be read from {str(file)!r}: {error}") from error
    return text.removesuffix("\n")


def _changes(stored: "StoredRun") -> list[str]:
    """Sentences about recipes and versions that changed since the run began."""
    from cachegraph.graph.store.records import installed
    from cachegraph.graph.store.resume import digest

    setting, notes = stored.setting, []
    if setting.file is not None and digest(Path(setting.file)) != setting.digest:
        notes.append(f"{setting.file} has changed since the run began; the run continues with the old recipe")
    notes += [
        f"{file}, an included recipe, has changed since the run began; the run continues with the new version"
        for file, was in setting.included.items()
        if digest(Path(file)) != was
    ]
    now = installed()
    changed = [f"{name} {was} → {now.get(name)}" for name, was in setting.versions.items() if now.get(name) != was]
    if changed:
        notes.append(f"since the run began: {', '.join(changed)}; the rest may differ from an uninterrupted run")
    return notes


def _print(stored: "StoredRun") -> None:
    console, setting = open_console(), stored.setting
    console.print(Text.assemble((stored.id, "bold"), f"  {stored.graph}  ", _status(stored.status)))
    facts = {
        "begun": _when(stored.created),
        "seconds": f"{stored.seconds:.1f}",
        "recipe": setting.file or f"in {setting.folder}",
        "versions": ", ".join(f"{name} {version}" for name, version in setting.versions.items()),
        **{f"input {name}": _short(value, 200) for name, value in setting.inputs.items()},
        "error": printable(stored.outcome.error or ""),
    }
    for name, fact in facts.items():
        if fact:
            console.print(Text.assemble((f"{name}: ", "dim"), fact), soft_wrap=True)
    _print_turns(stored, console)
    for name, unfinished in stored.outcome.unfinished.items():
        status = (f"{name} ({unfinished.status})", COLOURS.get(unfinished.status, "red"))
        console.print(Text.assemble(status, f" {printable(unfinished.error or '')}"), soft_wrap=True)
        if unfinished.prompt is not None:
            console.print(Text(_indented(printable(unfinished.prompt)), "dim"), soft_wrap=True)


def _print_turns(stored: "StoredRun", console: Console) -> None:
    """A line per turn. On a narrow terminal, replies are below their turns."""
    left = console.width - width_of(_turns(stored), console) - 1
    if left >= LEAST_REPLY:
        console.print(_turns(stored, left))
        return
    for turn in stored.turns:
        named = zip(("tokens read", "tokens written", "s", "finish"), _figures(turn.recorded.agent), strict=True)
        figures = ", ".join(f"{cell.plain} {name}" for name, cell in named if cell.plain != "-")
        console.print(Text(turn.turn, "bold"), soft_wrap=True)
        console.print(Text(f"    {figures}"))
        console.print(Text(f"    {_reply(turn.recorded.text)}"), no_wrap=True, overflow="ellipsis")


def _turns(stored: "StoredRun", reply_width: int | None = None) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("turn\n", "read\ntokens", "wrote\ntokens", "total\ns", "finish\n"):
        table.add_column(title, justify="left" if title in ("turn\n", "finish\n") else "right", no_wrap=True)
    if reply_width is not None:
        table.add_column("reply\n", no_wrap=True, max_width=reply_width, overflow="ellipsis")
    for turn in stored.turns:
        cells = [Text(turn.turn), *_figures(turn.recorded.agent)]
        table.add_row(*cells, *([Text(_reply(turn.recorded.text))] if reply_width is not None else []))
    return table


def _figures(agent: Mapping[str, Any]) -> tuple[Text, ...]:
    tokens, timing, finish = agent.get("tokens") or {}, agent.get("timing") or {}, agent.get("finish_reason") or "-"
    counts = (Text(str(tokens.get(kind) or "-")) for kind in ("prefilled", "generated"))
    return (*counts, Text(f"{timing.get('total') or 0.0:.2f}"), Text(finish, "" if finish in WHOLE else "yellow"))


def _reply(text: str | None) -> str:
    return _short(text, 300) if text is not None else "(hands over its cache)"


def _status(status: str) -> Text:
    return Text(status, COLOURS.get(status, "red"))


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _short(value: object, most: int) -> str:
    words = printable_line(value if isinstance(value, str) else json.dumps(value))
    return words if len(words) <= most else f"{words[: most - 1]}…"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
