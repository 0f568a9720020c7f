"""cachegraph plan: what a recipe will do and cost, from measured constants of this machine."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer
from pydantic import ByteSize, TypeAdapter
from rich.console import Console

from cachegraph.errors import CachegraphError, InputError

from .console import open_console
from .options import AllowCode, AllowEnv, AllowLocal, AllowPaths, Cluster, Recipe, open_graph
from .output import echo, echo_json
from .plan_tables import break_even_table, check_table, constants_table, plan_lines, prediction_table

if TYPE_CHECKING:
    from cachegraph.evaluation.cost.break_even import BreakEven
    from cachegraph.evaluation.cost.check import CheckedRun
    from cachegraph.evaluation.cost.collect import Needs
    from cachegraph.evaluation.cost.predict import CostSetting, Prediction
    from cachegraph.evaluation.cost.shape import Shape
    from cachegraph.graph.graph import Graph

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(plan)


def plan(
    recipe: Recipe,
    tokens: Annotated[
        int | None, typer.Option(help="Length of the longest input; by default its default's.", show_default=False)
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE/s",
            help="Of the way between agents, as 10GB/s or 1Gbit/s; by default they share memory.",
            show_default=False,
        ),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the constants of this machine again.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Also run the recipe, beside its prediction.")] = False,
    cluster: Cluster = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    allow_env: AllowEnv = None,
    allow_paths: AllowPaths = False,
    allow_code: AllowCode = False,
    allow_local: AllowLocal = False,
) -> None:
    """Show what a recipe will do and cost over text and over cache, and from where a cache pays; or what goes where."""
    from cachegraph.evaluation.cost.collect import kept_constants, needs_of
    from cachegraph.evaluation.cost.shape import recipe_shape

    if tokens is not None and tokens < 1:
        raise InputError(f"--tokens must be 1 or more, not {tokens}")
    rate = _bandwidth(bandwidth)
    graph = open_graph(recipe, allow_env, allow_paths, allow_code, allow_local)
    if cluster is not None:
        _print_placement(graph, cluster, as_json)
        return
    shape = recipe_shape(graph.spec, graph.folder)
    swapped = all(edge.form is None for edge in shape.edges) and bool(shape.edges)
    if swapped:
        graph = graph.with_channels("cache")
        shape = recipe_shape(graph.spec, graph.folder)
    if not as_json:
        for line in plan_lines(graph.spec.name, shape, swapped):
            echo(line)
    needs = needs_of(graph, shape)
    kept_constants(needs, graph.folder)
    report = _Report(graph, shape, needs, tokens, rate)
    console = open_console(stderr=True, quiet=as_json)
    try:
        _complete(report, console, measure, check)
    finally:
        graph.close()
    if as_json:
        echo_json(json.dumps(report.summary(), indent=2, ensure_ascii=False))
        return
    _print(report)


def _print_placement(graph: "Graph", address: str, as_json: bool) -> None:
    """Print what would go where on a cluster, before anything loads."""
    from dataclasses import asdict

    from cachegraph.cluster.connect import connect

    with connect(address) as cluster:
        found = cluster.plan(graph.validate().spec, graph.folder)
    if as_json:
        echo_json(json.dumps(asdict(found), indent=2, ensure_ascii=False))
        return
    for line in found.lines():
        echo(line)


class _Report:
    """What the command prints, as values."""

    def __init__(self, graph: "Graph", shape: "Shape", needs: "Needs", tokens: int | None, bandwidth: float | None):
        self.graph, self.shape, self.needs = graph, shape, needs
        self.tokens, self.bandwidth = tokens, bandwidth
        self.checked: list[CheckedRun] = []

    @property
    def setting(self) -> "CostSetting":
        from cachegraph.evaluation.cost.predict import CostSetting

        return CostSetting(self.needs.known_models, self.needs.known_edges, self.bandwidth)

    @property
    def length(self) -> float:
        """The document's characters."""
        if self.tokens is None:
            return self.shape.length
        reader = next((turn.model for turn in self.shape.turns if turn.documents), None)
        model = self.needs.known_models.get(reader or "")
        return self.tokens * (model.characters_per_token if model is not None else 4.0)

    def predictions(self) -> dict[str, "Prediction"]:
        """Over text and as the recipe is, if every constant is known."""
        from cachegraph.evaluation.cost.predict import predict

        if not self.needs.known_models:
            return {}
        shapes = {"text": self.shape.over_text(), "as the recipe is": self.shape}
        return {name: predict(shape, self.setting, self.length) for name, shape in shapes.items()}

    def break_evens(self) -> "list[BreakEven]":
        """Of every kind of cache edge, for several numbers of receivers."""
        from cachegraph.evaluation.cost.break_even import RECEIVERS, break_even

        results, seen = [], set()
        for edge in self.shape.edges:
            kind = (edge.form, edge.fuser, *(self.shape.turn(end).model for end in (edge.sender, edge.receiver)))
            if edge.form is None or kind in seen:
                continue
            seen.add(kind)
            results += [break_even(self.shape, edge, self.setting, number, self.length) for number in RECEIVERS]
        return [result for result in results if result is not None]

    def summary(self) -> dict[str, Any]:
        """As JSON-like values."""
        from dataclasses import asdict

        edges = [{key: value for key, value in asdict(edge).items() if key != "opening"} for edge in self.shape.edges]
        return {
            "recipe": self.graph.spec.name,
            "agents": [asdict(turn) for turn in self.shape.turns],
            "edges": edges,
            "document": {"input": self.shape.document, "characters": round(self.length)},
            "measured": {
                "models": [model.model_dump(mode="json") for model in self.needs.known_models.values()],
                "edges": [edge.model_dump(mode="json") for edge in self.needs.known_edges.values()],
            },
            "assumed": {"bandwidth": self.bandwidth, "lengths": list(self.shape.assumed)},
            "predictions": {
                name: {**prediction.model_dump(mode="json"), "seconds": prediction.seconds}
                for name, prediction in self.predictions().items()
            },
            "break_even": [result.model_dump(mode="json") for result in self.break_evens()],
            "checked": [{**run.model_dump(mode="json"), "ratio": run.ratio} for run in self.checked],
            "notes": self.needs.notes,
        }


def _complete(report: _Report, console: Console, measure: bool, check: bool) -> None:
    """Measure what is not known. If models can't be loaded, only what is known without them is printed."""
    from cachegraph.evaluation.cost.check import check_predictions
    from cachegraph.evaluation.cost.collect import measure_missing

    from .fetch import fetch_fusers, fetch_models

    needs, graph = report.needs, report.graph
    if not (measure or check or not needs.complete):
        return

    def say(stage: str) -> None:
        console.print(stage, soft_wrap=True)

    async def work() -> None:
        if measure or not needs.complete:
            await measure_missing(graph, needs, again=measure, on_stage=say)
        if check:
            report.checked = await check_predictions(graph, report.shape, report.setting, report.length, say)

    try:
        fetch_models(graph.spec, graph.folder)
        fetch_fusers(graph.spec, graph.folder)
        anyio.run(work)
    except CachegraphError as error:
        if measure or check:
            raise
        needs.notes.append(f"costs are not known: {error}")


def _print(report: _Report) -> None:
    from cachegraph.evaluation.cost.constants_cache import machine_name

    console, needs = open_console(), report.needs
    if needs.known_models:
        echo()
        console.print(constants_table(needs.known_models, needs.known_edges, machine_name()))
        echo()
        console.print(prediction_table(report.predictions(), report.length, report.shape, needs.known_models))
        for line in _assumptions(report):
            echo(line)
    if break_evens := report.break_evens():
        echo()
        console.print(
            break_even_table(break_evens, min(model.prefill.longest for model in needs.known_models.values()))
        )
    if report.checked:
        echo()
        console.print(check_table(report.checked))
    for note in needs.notes:
        echo(f"note: {note}")


def _assumptions(report: _Report) -> Sequence[str]:
    rate = report.bandwidth
    way = "edges stay in this process's memory" if rate is None else f"between agents {rate / 1e6:,.0f} MB/s"
    others = (
        "replies as long as the recipe allows; tokens as long as those of English; one device computes one thing after "
        "another; known prefixes are reused"
    )
    return [f"assumed: {way}; {others}", *(f"assumed: {assumption}" for assumption in report.shape.assumed)]


def _bandwidth(text: str | None) -> float | None:
    """Bytes a second. Raises InputError."""
    if text is None:
        return None
    try:
        size = TypeAdapter(ByteSize).validate_python(text.strip().removesuffix("/s").strip())
        if text.strip()[-1:].isdigit():
            raise ValueError("a number without a unit")
    except ValueError as error:  # pydantic's ValidationError is one
        raise InputError(
            f"--bandwidth {text!r} is not a size per second; write it as 10GB/s, 200MB/s or 1Gbit/s"
        ) from error
    if size <= 0:
        raise InputError(f"--bandwidth must be more than 0, not {text!r}")
    return float(size)
