"""cachegraph run --data: a recipe on every row of a file."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cachegraph.common.run_all import run_all
from cachegraph.errors import InputError, RunError
from cachegraph.graph.data.dataset import RawExample, read_rows
from cachegraph.graph.recipe.inputs import check_inputs, parse_inputs
from cachegraph.graph.recipe.load import dump_recipe, included

from .console import TASK, open_console
from .failures import add_facts
from .options import by_option
from .output import echo, echo_json
from .replies_file import RepliesFile, failed_line, reply_line, row_key
from .signals import ReportedStop

if TYPE_CHECKING:
    from cachegraph.graph.graph import Graph
    from cachegraph.graph.store import Store

__all__ = ["Batch", "run_batch"]

TABLES = (".csv", ".tsv")  # whose cells are text
SHOWN = 3  # failed rows that the last line names


class BatchRow(NamedTuple):
    """One row: its inputs, or why it can't run."""

    number: int  # from 0
    inputs: dict[str, Any]
    problem: str | None


class Batch:
    """A recipe, the rows to run it on, and the file of its replies."""

    def __init__(self, graph: "Graph", data: str, out: Path, fixed: Mapping[str, Any]):
        self.graph = graph
        self.rows = list(_rows(graph, data, fixed))
        bad = [row for row in self.rows if row.problem is not None]
        if len(bad) == len(self.rows):
            raise InputError(f"no row of {data!r} fits the recipe; the first: {bad[0].problem}")
        recipe = "".join(dump_recipe(spec) for spec in (graph.spec, *(inner for inner, _ in _inner(graph))))
        self.keys = [row_key(recipe, row.inputs) for row in self.rows]
        self.file = RepliesFile(out, self.keys)
        self.counts = Counter(self.file.kept.values())
        self.earlier = len(self.file.kept)
        self.failed: list[str] = []
        self._began = perf_counter()

    def todo(self) -> list[BatchRow]:
        """Return the rows that must run, and record those that can't."""
        left = [row for row in self.rows if row.number not in self.file.kept]
        for row in left:
            if row.problem is not None:
                self._add(failed_line(row.number, self.keys[row.number], row.problem))
        return [row for row in left if row.problem is None]

    async def run(self, row: BatchRow, store: "Store | None", progress: Progress) -> None:
        """Run one row and record its reply, or its error."""
        try:
            result = await self.graph.arun(row.inputs, store=store)
        except RunError as error:
            result = error.result
        self._add(reply_line(row.number, self.keys[row.number], result))
        progress.advance(progress.task_ids[0])

    def _add(self, line: dict[str, Any]) -> None:
        self.file.add(line)
        self.counts[line["status"]] += 1
        if line["status"] == "failed":
            self.failed.append(f"row {line['row']}: {line['error']}")

    @property
    def summary(self) -> dict[str, Any]:
        return {
            "rows": len(self.rows),
            "earlier": self.earlier,
            **{status: self.counts[status] for status in ("finished", "partial", "paused", "failed", "cancelled")},
            "seconds": round(perf_counter() - self._began, 3),
            "out": str(self.file.path),
        }


def run_batch(batch: Batch, concurrency: int, store: "Store | None", as_json: bool, quiet: bool) -> None:
    """Run the rows of which no earlier call has a reply, and print a summary. Raises RunError if rows failed."""
    add_facts(lambda: batch.summary)
    console = open_console(stderr=True, quiet=quiet or as_json)
    columns = (TextColumn(TASK, markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = console.quiet or not console.is_terminal
    try:
        todo = batch.todo()
        if batch.earlier:
            console.print(f"{batch.earlier} of {len(batch.rows)} rows have replies in {batch.file.path}")
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=hidden) as progress:
            progress.add_task("rows", total=len(batch.rows), completed=len(batch.rows) - len(todo))
            calls = [partial(batch.run, row, store, progress) for row in todo]
            anyio.run(run_all, calls, concurrency)
        batch.file.sort()
    except KeyboardInterrupt as error:
        done, path = sum(batch.counts.values()), batch.file.path
        echo(f"interrupted: {done} of {len(batch.rows)} rows are in {path}; the same command continues", err=True)
        raise ReportedStop from error
    _end(batch, as_json, quiet)


def _end(batch: Batch, as_json: bool, quiet: bool) -> None:
    found = batch.summary
    if batch.counts["failed"]:
        shown = "; ".join(batch.failed[:SHOWN])
        raise RunError(
            f"{batch.counts['failed']} of {found['rows']} rows failed ({shown}); the others are in {found['out']}, "
            "and the same command tries the failed ones again"
        )
    if as_json:
        echo_json(json.dumps(found))
    elif not quiet:
        echo(f"{found['rows']} rows, {found['finished']} finished, in {found['out']}", err=True)
    if batch.counts["paused"]:
        raise typer.Exit(4)


def _rows(graph: "Graph", data: str, fixed: Mapping[str, Any]) -> Iterator[BatchRow]:
    declared = graph.spec.inputs
    for name in fixed:
        if name not in declared:
            check_inputs(declared, dict(fixed))  # raises
    columns = dict(graph.spec.evaluate.inputs) if graph.spec.evaluate is not None else {}
    are_texts = data.lower().endswith(TABLES)
    for number, raw in enumerate(read_rows(data)):
        given = {**fixed, **_given(raw, list(declared), columns)}
        try:
            texts = {name: value for name, value in given.items() if are_texts and isinstance(value, str)}
            by_column = partial(_by_column, columns)
            checked = check_inputs(declared, {**given, **parse_inputs(declared, texts)}, remedy=by_column)
        except InputError as error:
            yield BatchRow(number, given, f"{raw.place}: {error}")
        else:
            yield BatchRow(number, checked, None)


def _by_column(columns: Mapping[str, str], names: Sequence[str]) -> str:
    """The remedy for inputs that a row lacks."""
    shown = ", ".join(repr(columns.get(name, name)) for name in names)
    return f"add {'a column' if len(names) == 1 else 'columns'} {shown} to the row, or for all rows {by_option(names)}"


def _given(raw: RawExample, names: Sequence[str], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the inputs that a row has a column for; the recipe's `evaluate` section may name other columns."""
    found = {name: columns.get(name, name) for name in names}
    return {name: raw.values[column] for name, column in found.items() if column in raw.values}


def _inner(graph: "Graph") -> Iterator[tuple[Any, Path]]:
    return included(graph.spec, graph.folder)
