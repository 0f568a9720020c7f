"""Tables of a run's result: agents, edges, totals, and several results side by side. Imports no graph."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cachegraph.agents.base import Timing, Tokens, Traffic
from cachegraph.common.printable import printable
from cachegraph.graph.run.result import AgentResult, Result

from .console import open_console, width_of

__all__ = ["print_comparison", "print_questions", "print_tables"]

CUT = {
    "length": "cut at the token limit",
    "content_filter": "withheld by a content filter",
    "refusal": "refused",
    "tool_calls": "ended in calls of tools",
    "error": "broken off by an error",
}

NARROWEST = 12  # columns for folded names


def print_questions(result: Result, console: Console, how: str) -> None:
    """Print what a paused run asks, and the command that answers it."""
    for name, agent in result.agents.items():
        if agent.status == "paused":
            console.print(Text.assemble((f"{name} asks:", "bold yellow"), f" {printable(agent.prompt or '')}"))
    if result.status == "paused":
        console.print(f"To answer: {how}", markup=False)


def print_tables(result: Result, console: Console) -> None:
    """Print the agents and edges of a run, then the reasons of fallbacks."""
    _print_agents(result, console)
    if result.edges:
        console.print(_edges(result))
    _print_totals(result, console)
    _print_cut(result, console)
    reasons: dict[str, list[str]] = {}
    for (sender, receiver), edge in result.edges.items():
        if edge.fallback_reason:
            reasons.setdefault(edge.fallback_reason, []).append(f"{sender} → {receiver}")
    for reason, edges in reasons.items():
        console.print(Text.assemble(("text instead of a cache", "yellow"), f" ({', '.join(edges)}): {reason}"))
    chosen = {(edge.fuser, edge.fuser_reason) for edge in result.edges.values() if edge.channel_used != "text"}
    for fuser, reason in sorted((fuser, reason) for fuser, reason in chosen if fuser and reason):
        console.print(Text(f"fuser {printable(fuser)}: {printable(reason)}", "dim"), soft_wrap=True)
    for warning in result.warnings:
        if warning.kind == "empty_edge":
            console.print(Text.assemble(("warning", "yellow"), f": {printable(str(warning))}"), soft_wrap=True)


def _print_totals(result: Result, console: Console) -> None:
    """Print totals over all turns, and the models' load times."""
    totals, tokens = result.totals, result.totals.tokens
    if totals.turns:
        parts = [f"{totals.turns:,} turn{'s' * (totals.turns != 1)} in {result.seconds:.2f} s"]
        for kind, word in (("prefilled", "read"), ("reused", "reused"), ("generated", "written")):
            parts += [f"{count:,} tokens {word}"] if (count := getattr(tokens, kind)) else []
        parts += [f"{totals.bytes:,} bytes over edges"] if totals.bytes else []
        console.print(Text(f"in all: {', '.join(parts)}", "dim"), soft_wrap=True)
    if result.loading.models:
        models = "; ".join(
            f"{model} {', '.join(f'{part} {seconds:.2f} s' for part, seconds in parts.items())}"
            for model, parts in result.loading.models.items()
        )
        loaded = f"loading models: {result.loading.seconds:.2f} s ({models})"
        console.print(Text(loaded, "dim"), soft_wrap=True)


def _print_cut(result: Result, console: Console) -> None:
    """Print the agents whose replies are incomplete, by reason."""
    for reason, says in CUT.items():
        names = []
        for name, agent in result.agents.items():
            turns = [*agent.earlier, agent]
            cut = sum(turn.finish_reason == reason for turn in turns)
            if cut:
                names.append(name if len(turns) == 1 else f"{name}, {cut} of {len(turns)} turns")
        if names:
            console.print(Text.assemble((says, "yellow"), f" ({reason}): {'; '.join(names)}"), soft_wrap=True)


def _print_agents(result: Result, console: Console) -> None:
    """Print the agents' table. A narrow terminal gets models below it, and long names on their own lines."""
    if not result.agents:  # none has begun
        return
    columns = _agents(result)
    models = columns.pop("model")
    agents = columns.pop("agent")
    full_table = _table({"agent": agents, "model": models, **columns}, left=("agent", "model"))
    if width_of(full_table, console) <= console.width:
        console.print(full_table)
        return
    columns.pop("finish", None)  # `_print_cut` says it too
    numbers = _table(columns, left=(), gap=1)
    if console.width - width_of(numbers, console) > min(NARROWEST, max(name.cell_len for name in agents)):
        console.print(_table({"agent": agents, **columns}, left=("agent",), gap=1))
    else:
        _print_below_names(agents, numbers, console)
    users: dict[str, list[str]] = {}
    for name, agent in result.agents.items():
        users.setdefault(agent.model, []).append(name)
    for model, names in users.items():
        if model:
            console.print(Text(f"{model}: {', '.join(names)}", "dim"))


def _print_below_names(names: Sequence[Text], numbers: Table, console: Console) -> None:
    """Print each row of numbers below its name. If no agent has numbers, as where all failed, print the names alone."""
    options = console.options.update(width=max(console.width, width_of(numbers, console)))
    lines = ["".join(part.text for part in line) for line in console.render_lines(numbers, options, pad=False)]
    for head in lines[: -len(names)]:
        console.print(Text(head, "bold"), soft_wrap=True)
    for name, line in zip_longest(names, lines[-len(names) :] if numbers.columns else (), fillvalue=""):
        console.print(name, overflow="fold")
        if not line:
            continue
        console.print(Text(line), soft_wrap=True)


def _agents(result: Result) -> dict[str, list[Text]]:
    agents = result.agents.values()
    columns: dict[str, list[Text]] = {
        "agent": [_named(_with_turns(name, agent), agent.status) for name, agent in result.agents.items()],
        "model": [Text(agent.model or "-") for agent in agents],
    }
    spent = [(_of_all_turns(agent), agent) for agent in agents]
    for title, kind in (("read", "prefilled"), ("reused", "reused"), ("wrote", "generated")):
        columns[f"{title}\ntokens"] = [Text(str(getattr(tokens, kind) or "-")) for (_, tokens), _ in spent]
    memory = [tokens.kv_bytes for (_, tokens), _ in spent]
    columns["kv memory\nMB"] = [Text(f"{size / 1e6:,.1f}" if size else "-") for size in memory]
    for title in ("queued", "prefill", "transfer", "fuse", "decode"):
        columns[f"{title}\ns"] = [Text(_seconds(getattr(timing, title))) for (timing, _), _ in spent]
    columns["first\ns"] = [Text(_seconds(agent.timing.first_token)) for agent in agents]
    columns["total\ns"] = [Text(_seconds(timing.total)) for (timing, _), _ in spent]
    columns["finish"] = [Text(agent.finish_reason or "-", "yellow" if agent.is_cut else "") for agent in agents]
    return {title: cells for title, cells in columns.items() if title in ("agent", "model") or _has_values(cells)}


def _of_all_turns(agent: AgentResult) -> tuple[Timing, Tokens]:
    """Timing and tokens of all turns of an agent, also while its only turn has not finished."""
    return (agent.total_timing, agent.total_tokens) if agent.turns > 1 else (agent.timing, agent.tokens)


def _with_turns(name: str, agent: AgentResult) -> str:
    if agent.items:
        name = f"{name}, {len(agent.items)} items"
    return f"{name} ×{agent.turns}" if agent.turns > 1 else name


def _edges(result: Result) -> Table:
    edges = result.edges
    traffic = [result.traffic.get(pair) or Traffic.of(edge) for pair, edge in edges.items()]
    columns: dict[str, list[Text]] = {
        "edge": [Text(f"{sender} → {receiver}") for sender, receiver in edges],
        "asked": [Text(str(edge.asked)) for edge in edges.values()],
        "used": [Text(edge.channel_used, "yellow" if edge.fallback_reason else "") for edge in edges.values()],
        "messages": [Text(str(part.messages) if part.messages > 1 else "-") for part in traffic],
        "sent\nbytes": [Text(f"{part.bytes:,}") for part in traffic],
        "fused\npositions": [Text(str(part.positions_fused or "-")) for part in traffic],
        "grafted\npositions": [Text(str(part.positions_grafted or "-")) for part in traffic],
    }
    return _table({title: cells for title, cells in columns.items() if _has_values(cells)}, ("edge", "asked", "used"))


def _has_values(cells: Sequence[Text]) -> bool:
    return any(cell.plain != "-" for cell in cells)


def _table(columns: Mapping[str, Sequence[Text]], left: Sequence[str], gap: int = 2) -> Table:
    """A table that cuts nothing. If it is too wide, it folds the names, the first column of `left`."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    below = "\n" if any("\n" in title for title in columns) else ""  # aligned with the lines that hold units
    for title, cells in columns.items():
        width = max(*map(len, title.split("\n")), 0, *(cell.cell_len for cell in cells))
        head = title if "\n" in title else title + below
        if title in left[:1]:
            table.add_column(head, overflow="fold", min_width=min(width, NARROWEST))
        else:
            table.add_column(head, justify="left" if title in left else "right", no_wrap=True, min_width=width)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _named(name: str, status: str) -> Text:
    return Text(name) if status == "finished" else Text(f"{name} ({status.replace('_', ' ')})", "red")


def print_comparison(results: Sequence[Result], titles: Sequence[str]) -> None:
    """Print runs of one graph over several channels, a column each."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("")
    for title in titles:
        table.add_column(title, justify="right")
    rows: dict[str, list[str]] = {
        "wall time, s": [f"{result.seconds:.2f}" for result in results],
        "turns": [f"{result.totals.turns:,}" for result in results],
        "tokens read": [f"{result.totals.tokens.prefilled:,}" for result in results],
        "tokens reused": [f"{result.totals.tokens.reused:,}" for result in results],
        "tokens written": [f"{result.totals.tokens.generated:,}" for result in results],
        "bytes over edges": [f"{result.totals.bytes:,}" for result in results],
        "edges as asked": [_as_asked(result) for result in results],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console = open_console(stderr=True)
    console.rule(Text("side by side", "bold"))
    console.print(table)
    note = "One run each, after a warm-up; for a measurement with controls use `cachegraph compare`."
    console.print(Text(note, "dim"))


def _as_asked(result: Result) -> str:
    fallen = sum(edge.fallback_reason is not None or edge.carried_nothing for edge in result.edges.values())
    return f"{len(result.edges) - fallen} of {len(result.edges)}"


def _seconds(value: float | None) -> str:
    return f"{value:.2f}" if value else "-"
