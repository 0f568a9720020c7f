"""cachegraph validate, schema and show: commands that read recipes and run nothing."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cachegraph.common.atomic_write import write_atomically
from cachegraph.errors import ConfigError, InputError, Problem, RecipeError

from .options import AllowCode, AllowEnv, AllowLocal, AllowPaths, Strict
from .output import echo, echo_json

if TYPE_CHECKING:
    from cachegraph.channels.spec import Channel
    from cachegraph.graph.recipe.spec import GraphSpec

__all__ = ["register"]

Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file.", show_default=False)]


class Format(StrEnum):
    """How `show` draws a graph."""

    text = "text"
    mermaid = "mermaid"
    svg = "svg"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(validate)
    app.command()(schema)
    app.command()(show)


def validate(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes' YAML files.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    allow_env: AllowEnv = None,
    allow_paths: AllowPaths = False,
    allow_code: AllowCode = False,
    allow_local: AllowLocal = False,
    strict: Strict = False,
    channel: Annotated[
        str | None, typer.Option("--channel", "-c", help="Report what every edge would drop over this channel.")
    ] = None,
    catalogue: Annotated[
        Path | None,
        typer.Option("--catalogue", help="Your catalogue; its entries override the shipped ones.", show_default=False),
    ] = None,
) -> None:
    """Check recipes: every problem with its line, and data that channels would drop."""
    from cachegraph.engine.catalogue import load_catalogue
    from cachegraph.graph.recipe.load import load_recipe

    known = frozenset(load_catalogue(catalogue).models)
    by_recipe: dict[str, list[Problem]] = {}
    doubts: dict[str, list[Problem]] = {}
    for recipe in recipes:
        try:
            spec = load_recipe(
                recipe,
                allow_env=allow_env or (),
                allow_paths=allow_paths,
                allow_code=allow_code,
                allow_local=allow_local,
                known_models=known,
            )
        except RecipeError as error:
            by_recipe[str(recipe)] = error.problems
            continue
        by_recipe[str(recipe)], doubts[str(recipe)] = _dropped(recipe, spec, channel)
        if strict:
            by_recipe[str(recipe)] += doubts.pop(str(recipe))
        if not as_json and not by_recipe[str(recipe)]:
            echo(f"{recipe}: fine, {_count(len(spec.agents), 'agent')}, {_count(len(spec.edges), 'edge')}")
            for doubt in doubts.get(str(recipe), ()):
                echo(f"warning: {doubt}")
    problems = [problem for group in by_recipe.values() for problem in group]
    if as_json:
        reports = [_report(recipe, group, doubts.get(recipe, [])) for recipe, group in by_recipe.items()]
        echo_json(json.dumps(reports, indent=2, ensure_ascii=False))
        raise typer.Exit(RecipeError.exit_code if problems else 0)
    if problems:
        raise RecipeError(problems)


def schema(
    training: Annotated[bool, typer.Option("--training", help="The schema of training recipes instead.")] = False,
    output: Output = None,
) -> None:
    """Print the JSON Schema of recipes, for editors."""
    if training:
        from cachegraph.training.load import training_schema

        _write(training_schema(), output)
        return
    from cachegraph.graph.recipe.json_schema import schema_text

    _write(schema_text(), output)


def show(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe's YAML file; with --run, by default the run's recipe.")
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="Format of the drawing.")] = Format.text,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="ID|FILE", help="Draw this stored run, or the run of a result file."),
    ] = None,
    output: Output = None,
    allow_env: AllowEnv = None,
    allow_paths: AllowPaths = False,
    allow_code: AllowCode = False,
    allow_local: AllowLocal = False,
) -> None:
    """Draw a recipe's graph, or a run on it."""
    from cachegraph.graph.draw.render import to_mermaid, to_svg, to_text
    from cachegraph.graph.plan.recipe_warnings import expected_warnings
    from cachegraph.graph.recipe.load import load_recipe

    spec = None
    if recipe is not None:
        spec = load_recipe(
            recipe,
            allow_env=allow_env or (),
            allow_paths=allow_paths,
            allow_code=allow_code,
            allow_local=allow_local,
        )
    if run is not None:
        from .show_run import draw_run

        _write(draw_run(spec, run, format.value), output)
        return
    if spec is None:
        raise InputError("show needs a recipe's file, or --run with the id of a stored run")
    draw = {Format.text: to_text, Format.mermaid: to_mermaid, Format.svg: to_svg}[format]
    assert recipe is not None
    _write(draw(spec, expected_warnings(spec, recipe.resolve().parent)[0]), output)


def _dropped(recipe: Path, spec: "GraphSpec", channel: str | None) -> tuple[list[Problem], list[Problem]]:
    """Problems and warnings of a recipe's channels, or of `channel` on every edge: what they would drop."""
    from cachegraph.graph.plan.recipe_warnings import expected_warnings, place_warning
    from cachegraph.graph.recipe.load import locate
    from cachegraph.graph.recipe.raw_spec import Finding
    from cachegraph.graph.recipe.swap_channels import swap_channels

    if channel is not None:
        spec = swap_channels(spec, cast("Channel", channel))
    warnings, cut = expected_warnings(spec, recipe.resolve().parent)
    wrong = [] if cut is None else [Finding(cut, ("output",))]
    return locate(recipe, wrong), locate(recipe, [place_warning(spec, warning) for warning in warnings])


def _report(recipe: str, problems: list[Problem], warnings: list[Problem]) -> dict[str, object]:
    keys = ("message", "hint", "file", "line", "column")
    problems_, warnings_ = (
        [{key: getattr(problem, key) for key in keys} for problem in group] for group in (problems, warnings)
    )
    return {"recipe": recipe, "valid": not problems, "problems": problems_, "warnings": warnings_}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _write(text: str, output: Path | None) -> None:
    """Print the text, or write it atomically to a file. Raises ConfigError."""
    if output is None:
        echo(text, end="")
        return
    try:
        write_atomically(output, text)
    except OSError as error:
        raise ConfigError(f"can't write {str(output)!r}: {error.strerror or error}; choose another file") from error
