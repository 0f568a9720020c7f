"""cachegraph run: run a recipe once, or once per channel side by side."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachegraph.errors import InputError
from cachegraph.serving.local_servers import permissions

from .failures import add_facts
from .garbage_collection import defer_garbage_collection
from .options import (
    AllowCode,
    AllowEnv,
    AllowLocal,
    AllowPaths,
    Cluster,
    Recipe,
    Strict,
    by_option,
    exit_if_paused,
    graphs_on,
    open_graph,
    open_store,
)
from .output import echo, echo_json
from .text_arguments import TextProblem, read_text

if TYPE_CHECKING:
    from cachegraph.channels.channel import Channel
    from cachegraph.graph.graph import Graph
    from cachegraph.graph.run.result import Result
    from cachegraph.graph.store import Store

    from .event_files import EventRecorder

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(run)


def run(
    recipe: Recipe,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=VALUE",
            help="An input; JSON unless it is text. NAME=@FILE reads a file, NAME=@- stdin.",
        ),
    ] = None,
    channels: Annotated[
        list[str] | None,
        typer.Option(
            "--channel", "-c", help="Use this channel on every edge; repeat to compare channels side by side."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the reply.")] = False,
    events: Annotated[
        Path | None, typer.Option("--events", metavar="FILE", help="Write each event of the run as a line of JSON.")
    ] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--store/--no-store",
            help="Store the run, so that `cachegraph runs resume` can continue it.",
        ),
    ] = True,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="FILE", help="Write a trace for ui.perfetto.dev or chrome://tracing."),
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", metavar="NAME", help="Continue this conversation, or start it.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server", metavar="URL", help="Run on a `cachegraph serve` that has this recipe's models loaded."
        ),
    ] = None,
    server_key_file: Annotated[
        Path | None, typer.Option("--server-key-file", metavar="FILE", help="The file of the server's key.")
    ] = None,
    no_server: Annotated[
        bool, typer.Option("--no-server", help="Run here, even if a server on this machine has the recipe loaded.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "-d", metavar="FILE", help="Run once for every row of this JSON Lines, JSON or CSV file."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="With --data: the file of the replies.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="With --data: maximum number of rows at the same time.")] = 16,
    cluster: Cluster = None,
    allow_env: AllowEnv = None,
    allow_paths: AllowPaths = False,
    allow_code: AllowCode = False,
    allow_local: AllowLocal = False,
    strict: Strict = False,
) -> None:
    """Run a recipe and print its reply, or run it on every row of a file."""
    texts = _inputs(inputs or [])
    server = None if no_server else server  # which the environment may name
    if data is not None or out is not None:
        _refuse_with_data(data, out, len(channels or []) > 1, [session, server, events, trace])
    elif (server or cluster) is None and not (no_server or events or trace) and keep and len(channels or []) < 2:
        permitted = permissions(allow_env or (), allow_paths, allow_code, allow_local, strict)
        result = _on_local_server(recipe, permitted, texts, next(iter(channels or []), None), session, quiet or as_json)
        if result is not None:
            _print_results([result], as_json, quiet)
            return

    wanted = _channels(channels or [])
    if session is not None and len(wanted) > 1:
        raise InputError("--session continues one conversation, so it takes at most one --channel")
    allowed = (allow_env, allow_paths, allow_code, allow_local)
    if server is not None:
        if events is not None or trace is not None or not keep or cluster is not None:
            raise InputError("--events, --trace, --no-store and --cluster are for runs from here, and not for --server")
        from .server_run import run_on_server, run_unchanged

        asked = (wanted, session, quiet or as_json)
        results = run_unchanged(server, server_key_file, recipe, texts, *asked)
        if results is None:
            results = run_on_server(server, server_key_file, open_graph(recipe, *allowed), texts, *asked)
        _print_results(results, as_json, quiet)
        return

    from cachegraph.graph.recipe.inputs import check_inputs, parse_inputs

    from .event_files import record_events
    from .fetch import fetch_fusers, fetch_models

    with defer_garbage_collection() as started, graphs_on(cluster, [open_graph(recipe, *allowed)]) as (graph,):
        graph.strict = strict
        values = parse_inputs(graph.spec.inputs, texts)
        store = open_store() if keep else None
        if data is not None and out is not None:
            one = graph.with_channels(wanted[0]) if wanted else graph
            _run_rows(one, data, out, values, concurrency, store, started, as_json, quiet, cluster)
            return
        check_inputs(graph.spec.inputs, values, remedy=by_option)
        with record_events(events, trace) as recorder:
            fetch_models(graph.spec, graph.folder, cluster)
            graphs = [graph.with_channels(channel) for channel in wanted] or [graph]
            for variant in graphs:
                fetch_fusers(variant.spec, graph.folder)
            with graph:
                started()
                results = _run_all(graphs, values, quiet or as_json, recorder, store, session)
    try:
        _print_results(results, as_json, quiet)
    finally:
        recorder.check()  # last: a reply is printed although a file of its events is incomplete


def _refuse_with_data(data: str | None, out: Path | None, many: bool, others: "Sequence[object]") -> None:
    if data is None or out is None:
        raise InputError("--data names the rows and --out the file of their replies; give both")
    if many or any(option is not None for option in others):
        raise InputError("--data takes at most one --channel, and no --session, --server, --events or --trace")


def _run_rows(
    graph: "Graph",
    data: str,
    out: Path,
    fixed: dict[str, Any],
    concurrency: int,
    store: "Store | None",
    started: Callable[[], None],
    as_json: bool,
    quiet: bool,
    cluster: str | None,
) -> None:
    from .batch import Batch, run_batch
    from .fetch import fetch_fusers, fetch_models

    batch = Batch(graph, data, out, fixed)
    with closing(batch.file):
        fetch_models(graph.spec, graph.folder, cluster)
        fetch_fusers(graph.spec, graph.folder)
        with graph:
            started()
            run_batch(batch, concurrency, store, as_json, quiet)


def _print_results(results: "Sequence[Result]", as_json: bool, quiet: bool) -> None:
    if as_json:
        texts = [result.to_json() for result in results]
        echo_json(texts[0] if len(texts) == 1 else f"[{','.join(texts)}]")
    elif quiet:
        for result in results:
            echo(result.text)
    exit_if_paused(results)


def _on_local_server(
    recipe: Path,
    permitted: Mapping[str, Any],
    texts: Mapping[str, str],
    channel: str | None,
    session: str | None,
    quiet: bool,
) -> "Result | None":
    from cachegraph.serving.local_servers import has_servers

    if not has_servers():  # the usual case costs no import of an HTTP client
        return None
    from .server_run import run_on_local_server

    return run_on_local_server(recipe, permitted, texts, channel, session, quiet)


def _run_all(
    graphs: "Sequence[Graph]",
    inputs: dict[str, Any],
    quiet: bool,
    recorder: "EventRecorder",
    store: "Store | None",
    session: str | None,
) -> "list[Result]":
    from cachegraph.engine.batching.request_context import current_context, request_context

    from .progress_view import run_and_print, warm_up
    from .result_tables import print_comparison

    if len(graphs) == 1:
        record = recorder.start_run(graphs[0].spec.name)
        stream = graphs[0].stream(inputs, store=store, session=session)
        return [run_and_print(stream, graphs[0].output, quiet, record)]
    # No reuse of prefixes: each channel must prefill its own prompts.
    with request_context(replace(current_context(), reuse=False)):
        warm_up(graphs, inputs)
        results: list[Result] = []
        add_facts(lambda: {"finished": [json.loads(result.to_json()) for result in results]})
        for graph in graphs:
            record = recorder.start_run(f"{graph.spec.name}, {_title(graph)}")
            stream = graph.stream(inputs, store=store)
            results.append(run_and_print(stream, graph.output, quiet, record, _title(graph)))
    if not quiet:
        print_comparison(results, [_title(graph) for graph in graphs])
    return results


def _title(graph: "Graph") -> str:
    from cachegraph.graph.recipe.load import included

    recipes = (graph.spec, *(inner for inner, _ in included(graph.spec, graph.folder)))
    return ", ".join(dict.fromkeys(edge.channel for recipe in recipes for edge in recipe.edges)) or "no edges"


def _channels(channels: Sequence[str]) -> "list[Channel]":
    from cachegraph.channels.channel import CHANNELS

    for channel in channels:
        if channel not in CHANNELS:
            raise InputError(f"there is no channel {channel!r}; choose one of {', '.join(CHANNELS)}")
    return [channel for channel in CHANNELS for given in channels if channel == given]


def _inputs(pairs: Sequence[str]) -> dict[str, str]:
    inputs: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--input needs NAME=VALUE, got {pair!r}")
        if name in inputs:
            raise InputError(f"the input {name!r} is given twice")
        inputs[name] = _file(name, value[1:]) if value.startswith("@") else value
    return inputs


def _file(name: str, path: str) -> str:
    try:
        return read_text(path)
    except TextProblem as error:
        raise InputError(f"the input {name!r} can't be read from {path!r}: {error}") from error
