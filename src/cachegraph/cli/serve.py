"""cachegraph serve: recipes behind the protocols that clients of models speak."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from cachegraph.errors import ConfigError

from .collection import start_without_collection
from .options import AllowCode, AllowEnv, AllowLocal, AllowPaths, Strict, open_graph
from .output import echo
from .signals import Told, handling_signals

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(serve)


def serve(
    recipes: Annotated[list[Path], typer.Argument(help="YAML files of recipes.", show_default=False)],
    host: Annotated[
        str, typer.Option(help="The address to listen on; beyond this machine it takes keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keys that clients must have, one a line: KEY, or TENANT KEY."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name that clients call this server by, besides localhost."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Runs at work at the same time.")] = 16,
    queue: Annotated[int, typer.Option(min=0, help="Runs that may wait; beyond them clients get 429.")] = 64,
    max_body: Annotated[int, typer.Option(min=1, metavar="BYTES", help="Of one request.")] = 4_000_000,
    max_prompt: Annotated[int, typer.Option(min=1, metavar="CHARACTERS", help="Of its messages and inputs.")] = 400_000,
    max_tokens: Annotated[int, typer.Option(min=1, help="That a request may ask for.")] = 4_096,
    timeout: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="Of one run.")] = 600.0,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="That runs get to finish after SIGTERM.")
    ] = 30.0,
    allow_env: AllowEnv = None,
    allow_paths: AllowPaths = False,
    allow_code: AllowCode = False,
    allow_local: AllowLocal = False,
    strict: Strict = False,
) -> None:
    """Serve recipes as models: the OpenAI API at /v1, and more (needs the extra `serve`)."""
    with start_without_collection() as started:
        try:
            from cachegraph.serving.auth import read_keys
            from cachegraph.serving.config import Limits, ServerConfig
            from cachegraph.serving.process import ServerProcess, bind
        except ModuleNotFoundError as error:
            raise ConfigError("`cachegraph serve` needs an extra: pip install 'cachegraph[serve]'") from error

        from .fetch import fetch_fusers, fetch_models

        limits = Limits(
            body_bytes=max_body,
            prompt_characters=max_prompt,
            tokens=max_tokens,
            seconds=timeout,
            running=concurrency,
            waiting=queue,
        )
        keys = read_keys(api_key_file) if api_key_file is not None else None
        config = ServerConfig(host, port, keys, tuple(allow_host or ()), limits, grace)
        graphs = [open_graph(recipe, allow_env, allow_paths, allow_code, allow_local) for recipe in recipes]
        sock = bind(config)
        for graph in graphs:
            graph.strict = strict
            fetch_models(graph.spec, graph.folder)
            fetch_fusers(graph.spec, graph.folder)
        process = ServerProcess(graphs, config)
        address, bound = sock.getsockname()[:2]
        names = ", ".join(graph.spec.name for graph in graphs)

        def tell() -> None:
            started()
            shown = f"[{address}]" if ":" in address else address
            echo(f"cachegraph: serving {names} at http://{shown}:{bound}", err=True)

        stopped: list[int] = []

        def on_signal(number: signal.Signals) -> None:
            if stopped:  # asked for twice
                raise KeyboardInterrupt
            stopped.append(number)
            process.stop(at_once=number == signal.SIGINT)

        with handling_signals(on_signal):
            process.run(sock, tell)
    if stopped:
        raise Told
