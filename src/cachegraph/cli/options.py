"""What several commands do with a recipe, said once: their options, and opening it as a graph."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cachegraph.graph.graph import Graph

__all__ = ["AllowEnv", "AllowPaths", "Recipe", "open_graph"]

Recipe = Annotated[Path, typer.Argument(help="A recipe's YAML file.", show_default=False)]
AllowEnv = Annotated[
    list[str] | None,
    typer.Option("--allow-env", metavar="NAME", help="An environment variable that endpoints may take a key from."),
]
AllowPaths = Annotated[bool, typer.Option("--allow-paths", help="Let recipes name files outside their folder.")]


def open_graph(recipe: Path, allow_env: Collection[str] | None, allow_paths: bool) -> "Graph":
    """The recipe as a graph, its models' names checked against the catalogue. Raises RecipeError."""
    from cachegraph.engine.models import load_catalogue
    from cachegraph.graph.graph import Graph

    known = frozenset(load_catalogue().models)
    return Graph.from_yaml(recipe, allow_env=allow_env or (), allow_paths=allow_paths, known_models=known)
