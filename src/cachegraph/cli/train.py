"""cachegraph train: train a fuser from a training recipe, or for an edge of a graph."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from cachegraph.common.human import format_bytes
from cachegraph.common.stop_signals import exit_code
from cachegraph.errors import ConfigError

from .console import TASK, open_console
from .failures import add_facts
from .output import echo, echo_json

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cachegraph.training.plan import TrainingPlan
    from cachegraph.training.spec import TrainSpec

__all__ = ["register"]

EXAMPLE = "cachegraph train --for recipes/science-duo.yaml --edge expert:answerer --data questions.jsonl"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(train)


def train(
    recipe: Annotated[Path | None, typer.Argument(help="A training recipe's YAML file.", show_default=False)] = None,
    graph: Annotated[
        Path | None, typer.Option("--for", help="The graph that the fuser is for, instead of a training recipe.")
    ] = None,
    edge: Annotated[str | None, typer.Option(metavar="SENDER:RECEIVER", help="The edge to train.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="fuse: both agents read the text; graft: only the sharer does; joint: some of both. "
            "By default, what the edge needs."
        ),
    ] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="Training examples; repeatable.")] = None,
    data_folder: Annotated[
        Path | None,
        typer.Option(help="Folder of the recipe's data files; by default the recipe's own.", show_default=False),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The fuser's folder.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.", show_default=False)] = None,
    control: Annotated[
        str | None,
        typer.Option(
            help="identical: the receiver is its own sharer; zero: the sharer's cache is all zeros; tuned: the "
            "receiver reads the text behind a trained prefix of as many parameters."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a value of the recipe, such as optim.learning_rate=5e-5."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard an interrupted training.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load everything, try a few steps, and estimate time and memory.")
    ] = False,
    track: Annotated[
        list[str] | None, typer.Option(help="tensorboard or wandb, if installed; log.jsonl is always written.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Train a fuser or a translator. Both models stay frozen."""
    from cachegraph.training.load import changed

    spec, folder = _spec(recipe, graph, edge, kind, data)
    overrides: dict[str, Any] = {"optim.steps": steps, "seed": seed, "control": control}
    if recipe is not None:
        overrides["edge"] = edge
        overrides["data.source"] = [
            str(Path(source).absolute()) if Path(source).exists() else source for source in data or []
        ]
    if output is not None:
        overrides["output"] = str(output.absolute())
    spec = changed(spec, {key: value for key, value in overrides.items() if value not in (None, [])})
    spec = changed(spec, dict(map(_setting, settings or [])))
    place = (data_folder or folder).absolute()
    _fetch(spec, folder)
    from cachegraph.training.processes import join_processes

    accelerator = join_processes()
    main = bool(accelerator.is_main_process)  # of several processes, one shows the progress and the outcome
    console = open_console(stderr=True, quiet=not main)
    if dry_run:
        from cachegraph.training.callbacks import check_trackers
        from cachegraph.training.plan import make_plan

        check_trackers(track or [])
        with _TrainingBar(console) as bar:
            plan = make_plan(spec, folder, place, bar, accelerator, resume=resume, restart=restart)
        if main:
            _show_plan(plan, as_json)
        return
    _train(spec, folder, place, resume, restart, track or [], console, as_json, accelerator)


def _train(
    spec: "TrainSpec",
    folder: Path,
    data_folder: Path,
    resume: bool,
    restart: bool,
    track: list[str],
    console: Console,
    as_json: bool,
    accelerator: "Accelerator",
) -> None:
    from cachegraph.training.callbacks import with_trackers
    from cachegraph.training.train import train

    bar = _TrainingBar(console)
    add_facts(lambda: {"step": bar.done, "steps": spec.optim.steps, "metrics": bar.metrics})
    try:
        with bar, with_trackers(bar, track, folder / f"{spec.name}.runs", spec.model_dump()) as callback:
            made = train(
                spec,
                folder=folder,
                data_folder=data_folder,
                resume=resume,
                restart=restart,
                callback=callback,
                accelerator=accelerator,
            )
    except KeyboardInterrupt:
        said = "the same command with --resume continues from the last step"
        if not bar.evaluated and not resume:
            said = "no step was taken yet, so nothing was saved: run the same command again"
        console.print(f"interrupted; {said}", style="yellow", soft_wrap=True)
        if as_json:
            raise
        raise typer.Exit(exit_code()) from None
    if not accelerator.is_main_process:
        return
    if as_json:
        found = {"fuser": str(made.folder), "steps": made.steps, "seconds": made.seconds, "metrics": made.metrics}
        echo_json(json.dumps(found, indent=2))
        return
    echo(f"{made.folder}: {made.steps} steps in {_time(made.seconds)}")
    for name, value in made.metrics.items():
        echo(f"  {name:28} {value:.4g}")


def _spec(
    recipe: Path | None, graph: Path | None, edge: str | None, kind: str | None, data: list[str] | None
) -> tuple["TrainSpec", Path]:
    """The training recipe, and the folder of its relative paths."""
    from cachegraph.training.default import default_spec
    from cachegraph.training.load import load_training

    if (recipe is None) == (graph is None):
        raise ConfigError(f"name a training recipe, or a graph with --for and --data; for example: {EXAMPLE}")
    if recipe is not None:
        return load_training(recipe), recipe.resolve().parent
    assert graph is not None
    if not data:
        raise ConfigError(f"--for needs --data, the training examples; for example: {EXAMPLE}")
    return default_spec(graph.resolve(), edge, kind, data), Path.cwd()


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set needs KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _fetch(spec: "TrainSpec", folder: Path) -> None:
    from cachegraph.graph.recipe.load import load_recipe

    from .fetch import fetch_models

    file = folder / Path(spec.graph).expanduser()
    graph = load_recipe(file, allow_paths=True)
    fetch_models(graph.model_copy(update={"models": {**graph.models, **spec.models}}), file.resolve().parent)


def _show_plan(plan: "TrainingPlan", as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        echo_json(json.dumps({**asdict(plan), "seconds": plan.seconds}, indent=2))
        return
    memory = (
        f"{format_bytes(plan.model_bytes)} models, {format_bytes(plan.training_bytes)} fuser in training; "
        f"{format_bytes(plan.resident_bytes)} in use after a few steps"
    )
    table = Table(show_header=False, box=None)
    for name, value in (
        ("receiver", plan.receiver),
        ("sharer", plan.sharer),
        ("rows", f"{plan.rows} about {plan.texts} texts, {plan.dev_rows} for dev"),
        ("parameters", f"{plan.parameters / 1e6:.1f} M, {plan.fuser_bytes / 1e6:.1f} MB on disk"),
        ("memory", memory),
        ("time", f"{plan.steps} steps of {plan.seconds_a_step:.2f} s: {_time(plan.seconds)}; {plan.left_out}"),
        ("prompt tokens a second", f"{plan.prompt_tokens_per_second:.0f}"),
        ("fuser", plan.fuser),
    ):
        table.add_row(name, value)
    open_console(soft_wrap=True).print(table)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class _TrainingBar:
    """Progress bar of steps on stderr, with tokens per second and remaining time; plain lines without a terminal."""

    def __init__(self, console: Console):
        self._console = console
        columns = (
            TextColumn(TASK, markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self.done = 0  # steps
        self.metrics: dict[str, float] = {}  # of the best checkpoint
        self.evaluated = False  # whether there was a dev evaluation, and so a checkpoint

    def __enter__(self) -> "_TrainingBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_phase(self, what: str, done: int, total: int) -> None:
        self._show("phase", what, done, total)

    def on_step(self, step: int, steps: int, numbers: Mapping[str, float]) -> None:
        text = f"loss {numbers['loss']:.3f}, {numbers['prompt_tokens_per_second']:.0f} prompt tokens/s"
        self.done = step
        self._show("steps", text, step, steps)

    def on_eval(self, step: int, numbers: Mapping[str, float], kept: bool) -> None:
        self.evaluated = True
        if kept or not self.metrics:
            self.metrics = dict(numbers)
        said = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items() if name != "rows")
        self._console.print(f"step {step}: {said}{' (kept)' if kept else ''}", soft_wrap=True)

    def _show(self, task: str, text: str, done: int, total: int) -> None:
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(text, total=total)
        self._progress.update(self._tasks[task], description=text, completed=done, total=total)
