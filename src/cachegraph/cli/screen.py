"""What a person sees of a run: the reply as it is written, on stdout; who did what and how long, on stderr."""

import sys
from collections.abc import Mapping, Sequence

import anyio
from rich.console import Console
from rich.table import Table

from cachegraph.errors import RunError
from cachegraph.graph.events import AgentFailed, AgentFinished, Event, TextDelta
from cachegraph.graph.graph import Graph
from cachegraph.graph.result import Result
from cachegraph.graph.stream import RunStream

__all__ = ["print_comparison", "run_and_print", "warm_up"]


def warm_up(graphs: Sequence[Graph], inputs: Mapping[str, str]) -> None:
    """One run that isn't counted, so that the first channel does not pay for waking up the models."""
    console = Console(stderr=True)
    with console.status("warming up"):
        graphs[0].run(inputs)


def run_and_print(graph: Graph, inputs: Mapping[str, str], quiet: bool, title: str | None = None) -> Result:
    """Run once. Ctrl-C, or a failing run, still prints what finished."""
    console = Console(stderr=True, quiet=quiet)
    if title:
        console.rule(f"[bold]{title}")
    stream = graph.stream(inputs)
    try:
        anyio.run(_follow, stream, graph.output, quiet, console)
    except (KeyboardInterrupt, RunError):
        if not quiet:
            print_tables(stream.result, console)
        raise
    if not quiet:
        print_tables(stream.result, console)
    return stream.result


async def _follow(stream: RunStream, output: str, quiet: bool, console: Console) -> None:
    streamed = False
    async with stream:
        async for event in stream:
            if isinstance(event, TextDelta) and event.agent == output and not quiet:
                sys.stdout.write(event.text)
                sys.stdout.flush()
                streamed = True
            elif not quiet:
                _note(event, output, console)
    if streamed:
        sys.stdout.write("\n")
    elif not quiet:
        sys.stdout.write(f"{stream.result.text}\n")
    sys.stdout.flush()


def _note(event: Event, output: str, console: Console) -> None:
    if isinstance(event, AgentFinished) and event.agent != output:
        text = " ".join((event.result.text or "").split())
        shown = text if len(text) <= 100 else f"{text[:99]}…"
        console.print(f"[dim]{event.agent}: {_escaped(shown) or '(hands over its cache)'}[/]", highlight=False)
    elif isinstance(event, AgentFailed):
        console.print(f"[red]{event.agent}: {_escaped(event.error)}[/]", highlight=False)


def print_tables(result: Result, console: Console) -> None:
    """Agents and edges of one run; why an edge did not go as asked stands below."""
    console.print(_agents(result))
    if result.edges:
        console.print(_edges(result))
    reasons: dict[str, list[str]] = {}
    for (sender, receiver), edge in result.edges.items():
        if edge.fallback_reason:
            reasons.setdefault(edge.fallback_reason, []).append(f"{sender} → {receiver}")
    for reason, edges in reasons.items():
        console.print(f"[yellow]text instead of a cache[/] ({', '.join(edges)}): {_escaped(reason)}", highlight=False)


def _agents(result: Result) -> Table:
    columns: dict[str, list[str]] = {
        "agent": [_named(name, agent.status) for name, agent in result.agents.items()],
        "model": [agent.model for agent in result.agents.values()],
    }
    for title, kind in (("read", "prefilled"), ("reused", "reused"), ("wrote", "generated")):
        columns[title] = [str(getattr(agent.tokens, kind) or "-") for agent in result.agents.values()]
    for title in ("queued", "prefill", "transfer", "fuse", "decode", "first_token", "total"):
        columns[title.removesuffix("_token")] = [
            _seconds(getattr(agent.timing, title)) for agent in result.agents.values()
        ]
    return _table({title: cells for title, cells in columns.items() if set(cells) != {"-"}}, left=("agent", "model"))


def _edges(result: Result) -> Table:
    edges = result.edges
    columns: dict[str, list[str]] = {
        "edge": [f"{sender} → {receiver}" for sender, receiver in edges],
        "asked": [str(edge.asked) for edge in edges.values()],
        "used": [_warned(edge.channel_used, edge.fallback_reason is not None) for edge in edges.values()],
        "bytes": [f"{edge.bytes:,}" for edge in edges.values()],
        "fused": [str(edge.positions_fused or "-") for edge in edges.values()],
        "grafted": [str(edge.positions_grafted or "-") for edge in edges.values()],
    }
    return _table({title: cells for title, cells in columns.items() if set(cells) != {"-"}}, ("edge", "asked", "used"))


def _table(columns: Mapping[str, Sequence[str]], left: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in columns:
        table.add_column(title, justify="left" if title in left else "right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _named(name: str, status: str) -> str:
    return name if status == "finished" else f"[red]{name} ({status})[/]"


def _warned(text: str, warned: bool) -> str:
    return f"[yellow]{text}[/]" if warned else text


def print_comparison(results: Sequence[Result], titles: Sequence[str]) -> None:
    """Runs of one graph over several channels, a column each. One run is a picture, not a measurement."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("")
    for title in titles:
        table.add_column(title, justify="right")
    rows: dict[str, list[str]] = {
        "wall time, s": [f"{result.seconds:.2f}" for result in results],
        "tokens read": [_total(result, "prefilled") for result in results],
        "tokens reused": [_total(result, "reused") for result in results],
        "tokens written": [_total(result, "generated") for result in results],
        "bytes over edges": [f"{sum(edge.bytes for edge in result.edges.values()):,}" for result in results],
        "edges as asked": [_as_asked(result) for result in results],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console = Console(stderr=True)
    console.rule("[bold]side by side")
    console.print(table)
    console.print("[dim]One run each, after a warm-up; for a measurement with controls use `cachegraph compare`.[/]")


def _total(result: Result, kind: str) -> str:
    return f"{sum(getattr(agent.tokens, kind) for agent in result.agents.values()):,}"


def _as_asked(result: Result) -> str:
    fallen = sum(edge.fallback_reason is not None for edge in result.edges.values())
    return f"{len(result.edges) - fallen} of {len(result.edges)}"


def _seconds(value: float | None) -> str:
    return f"{value:.2f}" if value else "-"


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
