"""cachegraph compare: run variants of a recipe's edges on a user's data, with controls."""

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cachegraph.common.human import format_duration
from cachegraph.errors import ConfigError, InputError

from .console import TASK, open_console
from .failures import add_facts
from .options import AllowCode, AllowEnv, AllowLocal, AllowPaths, Cluster, Recipe, graphs_on, open_graph
from .output import echo, echo_json

if TYPE_CHECKING:
    from cachegraph.evaluation.comparison import Comparison
    from cachegraph.evaluation.run_variants import Progress as Made
    from cachegraph.evaluation.task import Task

__all__ = ["register"]

DEFAULT_VARIANTS = "text,cache,alone,mismatched"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(compare)


def compare(
    recipe: Recipe,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="A JSON Lines, JSON or CSV file, or a hub data set: owner/name:config@split.",
            show_default=False,
        ),
    ],
    variants: Annotated[
        str,
        typer.Option(
            "--variants",
            help="Comma-separated: text, cache, both, auto, alone, sharer, mismatched, zero, identical, ceiling, "
            "floor, tuned@FOLDER; cache@NAME is cache with another fuser, cache@mean the mean over all such fusers, "
            "cache:SENDER:RECEIVER a cache on one edge",
        ),
    ] = DEFAULT_VARIANTS,
    edges: Annotated[
        bool, typer.Option("--edges", help="Also swap one edge at a time: which edges are worth a cache.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Number of examples to draw.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the examples, the mismatched pairs, sampling and intervals.")] = 0,
    seeds: Annotated[int, typer.Option(help="Number of seeds to repeat everything random with.")] = 1,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            "-m",
            show_default=False,
            help="accuracy, accuracy_per_character, answer_logprob, exact_match, contains or f1; "
            "the verdict uses the first.",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="NAME=COLUMN",
            show_default=False,
            help="The column of an input, or of choices, labels, answer, references or id.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Also show results for each value of this column.", show_default=False),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="Examples that run at a time; 1 measures single-stream latency. "
            "By default 8 if batching changes no bit of a result, else 1.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File of finished results; by default in this folder, named after the comparison.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report.", show_default=False)] = None,
    save: Annotated[Path | None, typer.Option(help="Write the whole comparison as JSON.", show_default=False)] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write one row for each example and variant as CSV.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the verdicts and warnings.")] = False,
    cluster: Cluster = None,
    allow_env: AllowEnv = None,
    allow_paths: AllowPaths = False,
    allow_code: AllowCode = False,
    allow_local: AllowLocal = False,
) -> None:
    """Compare the channels of a recipe's edges on your data, with controls."""
    from cachegraph.evaluation.compare import default_results_file, run_task
    from cachegraph.evaluation.task import make_task

    from .fetch import fetch_fusers, fetch_models

    wanted = [name.strip() for name in variants.split(",") if name.strip()]
    _refuse_code(metrics or [])
    opened = [open_graph(recipe, allow_env, allow_paths, allow_code, allow_local)]
    connection = ExitStack()
    (graph,) = connection.enter_context(graphs_on(cluster, opened))
    settings: dict[str, Any] = {"map": sorted(columns or []), "limit": limit, "seed": seed, "seeds": seeds}
    results = out or default_results_file(graph, data, settings)
    for path in (results, report, save, csv):
        _check_writable(path)
    if report is not None:
        from cachegraph.evaluation.report import needs

        needs()
    task = make_task(graph, data, wanted, metrics, _mapping(columns or []), limit, seed, seeds, concurrency, by, edges)
    fetch_models(graph.spec, graph.folder, cluster)
    fetch_fusers(graph.spec, graph.folder)
    console = open_console(stderr=True, quiet=quiet)
    console.print(f"results: {results} (Ctrl-C is safe: the same command continues)", soft_wrap=True)
    add_facts(lambda: {"results_file": str(results)})
    if edges:
        _print_plan(console, task)
    try:
        with _ComparisonBar(console) as bar:
            add_facts(lambda: {"finished": bar.finished, "examples": bar.examples})
            found = run_task(task, results, bar.show)
    finally:
        graph.close()
        connection.close()
    if found.results_file not in (None, results.name):
        other = f"{results.name} holds another comparison (of other settings, versions, threads or another machine)"
        console.print(f"{other}: these results are in {found.results_file}", soft_wrap=True)
    found.environment.command = shlex.join(["cachegraph", *sys.argv[1:]])
    _save(found, save, report, csv)
    _print(found, as_json, quiet)


def _print_plan(console: Console, task: "Task") -> None:
    """How many variants will run, before any model is loaded."""
    for (sender, receiver), why in task.text_only.items():
        console.print(f"{sender} → {receiver} stays text: {why}", soft_wrap=True)
    swapped = f"{len(task.edges)} edge{'s' if len(task.edges) > 1 else ''}"
    count, examples = len({variant.records for variant in task.variants}), len(task.examples)
    plan = f"plan: {count} variants, one edge at a time for {swapped} and their controls; {examples} examples each"
    console.print(plan, soft_wrap=True)


def _save(found: "Comparison", save: Path | None, report: Path | None, csv: Path | None) -> None:
    if save is not None:
        found.save(save)
    if csv is not None:
        found.to_csv(csv)
    if report is not None:
        from cachegraph.evaluation.report import write_report

        write_report(found, report)


def _print(found: "Comparison", as_json: bool, quiet: bool) -> None:
    if as_json:
        import json

        echo_json(json.dumps(found.summary(), indent=2, ensure_ascii=False))
        return
    if not quiet:
        open_console().print(found.table())
        echo()
    for verdict in found.verdicts:
        echo(verdict)
    for warning in found.warnings:
        echo(f"warning: {warning}")


class _ComparisonBar:
    """Progress bar with the remaining time, on stderr if that is a terminal."""

    def __init__(self, console: Console):
        columns = (
            TextColumn(TASK, markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        hidden = console.quiet or not console.is_terminal
        self._progress = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=hidden)
        self._task = self._progress.add_task("loading", total=None)
        self._reported: set[str] = set()
        self.finished = self.examples = 0  # runs of examples, of all variants together

    def __enter__(self) -> "_ComparisonBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, made: "Made") -> None:
        """Called with every record. Reports variants that can't run at once, not after hours."""
        for name, why in made.refused.items():
            if name not in self._reported:
                self._reported.add(name)
                self._progress.console.print(f"{name} can't run: {why}")
        if made.seconds_left is not None and made.done < made.total:
            about = (
                f"{made.total - made.done} of {made.total} runs are left, about {format_duration(made.seconds_left)}"
            )
            self._progress.console.print(f"{about}, by the first runs of each variant", soft_wrap=True)
        self.finished, self.examples = made.done, made.total
        seed = f", seed {made.seed}" if made.seed else ""
        self._progress.update(self._task, description=f"{made.variant}{seed}", completed=made.done, total=made.total)


def _check_writable(path: Path | None) -> None:
    """Raise InputError or ConfigError if the file can't be written: before hours of work."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(
            f"{str(path)!r} can't be written: {'it is a folder' if path.is_dir() else 'its folder does not exist'}"
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{str(path)!r} can't be written: this account may not")


def _refuse_code(metrics: Sequence[str]) -> None:
    for metric in metrics:
        if ":" in metric:
            raise InputError(f"the metric {metric!r} is a function; pass it to cachegraph.compare in Python")


def _mapping(pairs: Sequence[str]) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--map wants NAME=COLUMN, got {pair!r}")
        if name in mapping:
            raise InputError(f"{name!r} is mapped twice")
        mapping[name] = column
    return mapping
