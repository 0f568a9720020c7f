"""cachegraph mcp: recipes as tools of the Model Context Protocol, over stdin and stdout."""

from pathlib import Path
from typing import Annotated

import typer

from cachegraph.errors import ConfigError

from .garbage_collection import defer_garbage_collection
from .options import AllowCode, AllowEnv, AllowLocal, AllowPaths, Strict, open_graph
from .output import echo

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(mcp)


def mcp(
    recipes: Annotated[list[Path], typer.Argument(help="YAML files of recipes.", show_default=False)],
    concurrency: Annotated[
        int, typer.Option(min=1, help="Maximum number of calls at the same time; others wait.")
    ] = 16,
    allow_env: AllowEnv = None,
    allow_paths: AllowPaths = False,
    allow_code: AllowCode = False,
    allow_local: AllowLocal = False,
    strict: Strict = False,
) -> None:
    """Serve recipes as MCP tools over stdin and stdout, for assistants that start this command (extra `tools`)."""
    import anyio

    with defer_garbage_collection() as started:
        try:
            from cachegraph.serving.mcp_tools import GraphTools, serve_stdio
        except ModuleNotFoundError as error:
            raise ConfigError("`cachegraph mcp` needs an extra: pip install 'cachegraph[tools]'") from error
        graphs = [open_graph(recipe, allow_env, allow_paths, allow_code, allow_local) for recipe in recipes]
        for graph in graphs:
            graph.strict = strict
        tools = GraphTools(graphs, concurrency)

        def prepare() -> None:
            from .fetch import fetch_fusers, fetch_models

            for graph in graphs:
                fetch_models(graph.spec, graph.folder)
                fetch_fusers(graph.spec, graph.folder)
            started()

        names = ", ".join(graph.spec.name for graph in graphs)
        echo(f"cachegraph: serving {names} as MCP tools over stdin and stdout", err=True)
        anyio.run(serve_stdio, tools, prepare)
