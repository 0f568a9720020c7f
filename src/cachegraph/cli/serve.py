"""cachegraph serve: recipes behind the protocols that clients of models speak."""

import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachegraph.common.stop_signals import handling_signals
from cachegraph.errors import ConfigError

from .garbage_collection import defer_garbage_collection
from .options import AllowCode, AllowEnv, AllowLocal, AllowPaths, Cluster, Strict, graphs_on, open_graph
from .output import echo
from .signals import ReportedStop

if TYPE_CHECKING:
    from cachegraph.graph.graph import Graph
    from cachegraph.serving.config import ServerConfig
    from cachegraph.serving.local_servers import Announcement
    from cachegraph.serving.process import ServerProcess

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(serve)


def serve(
    recipes: Annotated[list[Path], typer.Argument(help="YAML files of recipes.", show_default=False)],
    host: Annotated[
        str, typer.Option(help="The address to listen on; an address that others reach requires keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0: any that is free.")] = 8765,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of the keys that clients must have, one a line: KEY, or TENANT KEY."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name that clients call this server by, besides localhost."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Maximum number of runs at the same time.")] = 16,
    queue: Annotated[int, typer.Option(min=0, help="Runs that may wait; beyond them clients get 429.")] = 64,
    max_body: Annotated[int, typer.Option(min=1, metavar="BYTES", help="Maximum size of a request.")] = 4_000_000,
    max_prompt: Annotated[
        int, typer.Option(min=1, metavar="CHARACTERS", help="Maximum length of a request's messages and inputs.")
    ] = 400_000,
    max_tokens: Annotated[int, typer.Option(min=1, help="Largest max_tokens that a request may ask for.")] = 4_096,
    timeout: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="Maximum time of a run.")] = 600.0,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time that runs have to finish after SIGTERM.")
    ] = 30.0,
    response_days: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="Age at which a response of /v1/responses is deleted.")
    ] = 30.0,
    response_gb: Annotated[
        float, typer.Option(min=0, metavar="GB", help="Maximum size of all stored responses; the oldest are deleted.")
    ] = 2.0,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log to stderr as JSON lines, with a line for every run.")
    ] = False,
    log_content: Annotated[
        bool, typer.Option("--log-content", help="With --log-json: also log the replies and errors of runs.")
    ] = False,
    allow_upload: Annotated[
        bool,
        typer.Option(
            "--allow-upload",
            help="Let clients see recipes and run changed ones: no code, files, tools, other models or addresses.",
        ),
    ] = False,
    reports: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="Show the comparison reports (*.html) of this folder in the studio.",
        ),
    ] = None,
    cluster: Cluster = None,
    allow_env: AllowEnv = None,
    allow_paths: AllowPaths = False,
    allow_code: AllowCode = False,
    allow_local: AllowLocal = False,
    strict: Strict = False,
) -> None:
    """Serve recipes as models: the OpenAI API at /v1, and more (needs the extra `serve`)."""
    with defer_garbage_collection() as started, ExitStack() as connection:
        try:
            from cachegraph.serving.auth import read_keys
            from cachegraph.serving.config import ServerConfig, ServerLimits
            from cachegraph.serving.process import ServerProcess, bind
            from cachegraph.serving.run_log import log_as_json
        except ModuleNotFoundError as error:
            raise ConfigError("`cachegraph serve` needs an extra: pip install 'cachegraph[serve]'") from error
        limits = ServerLimits(max_body, max_prompt, max_tokens, seconds=timeout, running=concurrency, waiting=queue)
        keys = read_keys(api_key_file) if api_key_file is not None else None
        opened = [open_graph(recipe, allow_env, allow_paths, allow_code, allow_local) for recipe in recipes]
        graphs = connection.enter_context(graphs_on(cluster, opened))
        config = ServerConfig(
            host,
            port,
            keys,
            tuple(allow_host or ()),
            limits,
            grace,
            allow_upload,
            reports,
            response_days=response_days,
            response_bytes=response_gb * 1e9,
            log_content=log_content,
        )
        if log_json:
            log_as_json()
        process = ServerProcess(graphs, config)
        sock = bind(config)
        _prepare(graphs, strict, cluster)
        announcement = _announcement(process.address(sock), graphs, config)

        def tell() -> None:
            started()
            announcement.write()
            _tell_address(process.names, process.address(sock), log_json)

        stopped = _run(process, sock, tell, announcement)
    if stopped:
        raise ReportedStop


def _prepare(graphs: "Sequence[Graph]", strict: bool, cluster: str | None) -> None:
    from .fetch import fetch_fusers, fetch_models

    for graph in graphs:
        graph.strict = strict
        fetch_models(graph.spec, graph.folder, cluster)
        fetch_fusers(graph.spec, graph.folder)


def _announcement(url: str, graphs: "Sequence[Graph]", config: "ServerConfig") -> "Announcement":
    """What `cachegraph run` finds this server by. A server with keys announces nothing: a run would need one."""
    from cachegraph.serving.announced_recipe import announced
    from cachegraph.serving.local_servers import Announcement

    recipes = [announced(graph) for graph in graphs] if config.keys is None else []
    return Announcement(url, [recipe for recipe in recipes if recipe is not None])


def _tell_address(names: "Sequence[str]", url: str, as_json: bool) -> None:
    from cachegraph.serving.run_log import log_address

    if as_json:
        log_address(names, url)
    else:
        echo(f"cachegraph: serving {', '.join(names)} at {url}", err=True)


def _run(process: "ServerProcess", sock: socket.socket, tell: Callable[[], None], announcement: "Announcement") -> bool:
    """Serve until a signal; whether there was one. SIGTERM lets runs finish, and Ctrl-C ends them."""
    stopped: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        if stopped:  # the second one
            raise KeyboardInterrupt
        stopped.append(number)
        announcement.remove()
        process.stop(at_once=number == signal.SIGINT)

    try:
        with handling_signals(on_signal):
            process.run(sock, tell)
    finally:
        announcement.remove()
    return bool(stopped)
