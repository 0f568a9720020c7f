"""Options shared by commands, and opening a recipe as a graph."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cachegraph.graph.graph import Graph
    from cachegraph.graph.run.result import Result
    from cachegraph.graph.store import Store

__all__ = [
    "AllowCode",
    "AllowEnv",
    "AllowLocal",
    "AllowPaths",
    "Cluster",
    "Recipe",
    "Strict",
    "by_option",
    "exit_if_paused",
    "graphs_on",
    "open_graph",
    "open_store",
]

Recipe = Annotated[Path, typer.Argument(help="A recipe's YAML file.", show_default=False)]
AllowEnv = Annotated[
    list[str] | None,
    typer.Option("--allow-env", metavar="NAME", help="An environment variable that endpoints may read a key from."),
]
AllowPaths = Annotated[bool, typer.Option("--allow-paths", help="Let recipes name files outside their folder.")]

AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Let the recipe run functions and programs, and use tools on this machine.")
]

AllowLocal = Annotated[
    bool, typer.Option("--allow-local", help="Let endpoints be in private networks or on this machine.")
]

Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="A Ray cluster for the models (extra `ray`): local, auto (of this machine), or ray://HOST:PORT.",
    ),
]

Strict = Annotated[
    bool,
    typer.Option("--strict", help="Treat warnings as errors: data that channels drop, inputs that no agent reads."),
]


def by_option(names: Sequence[str]) -> str:
    """The remedy for inputs that a command line lacks."""
    return f"give {'it' if len(names) == 1 else 'them'} with {' '.join(f'-i {name}=...' for name in names)}"


def open_graph(
    recipe: Path,
    allow_env: Collection[str] | None,
    allow_paths: bool,
    allow_code: bool = False,
    allow_local: bool = False,
) -> "Graph":
    """The recipe as a graph, with model names checked against the catalogue. Raises RecipeError."""
    from cachegraph.engine.catalogue import load_catalogue
    from cachegraph.graph.graph import Graph

    known = frozenset(load_catalogue().models)
    return Graph.from_yaml(
        recipe,
        allow_env=allow_env or (),
        allow_paths=allow_paths,
        allow_code=allow_code,
        allow_local=allow_local,
        known_models=known,
    )


@contextmanager
def graphs_on(cluster: str | None, graphs: "list[Graph]") -> "Iterator[list[Graph]]":
    """The graphs, with their models on this cluster until the end of the block. Raises InputError or ConfigError."""
    if cluster is None:
        yield graphs
        return
    from cachegraph.cluster.connect import connect

    with connect(cluster) as connected:
        yield [graph.on_cluster(connected) for graph in graphs]


def open_store() -> "Store":
    """This machine's run store, or the one that CACHEGRAPH_STORE names. Raises ConfigError if it can't be used."""
    from cachegraph.graph.store import Store

    store = Store()
    store.list(0)  # raises its errors before a model is loaded
    return store


def exit_if_paused(results: "Sequence[Result]") -> None:
    """Exit with 4 if a run waits for a person, so that scripts know that there is no reply yet."""
    if any(result.status == "paused" for result in results):
        raise typer.Exit(4)
