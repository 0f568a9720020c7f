"""Draw a run."""

from collections.abc import Sequence

from cachegraph.channels.payload import EdgeReport
from cachegraph.common.human import format_bytes

from ..plan.plan import plan
from ..recipe.spec import GraphSpec
from ..run.result import AgentResult
from .render import ARROWS, escape_mermaid, model_label, visible
from .run_view import RunView
from .svg import Box, Line, draw

__all__ = ["run_to_mermaid", "run_to_svg", "run_to_text"]

MOST_TURNS = 12  # listed per agent in the outline
COLOURS = {
    "finished": "fill:#dafbe1,stroke:#1a7f37",
    "failed": "fill:#ffebe9,stroke:#cf222e",
    "running": "fill:#ddf4ff,stroke:#0969da",
    "paused": "fill:#fff8c5,stroke:#9a6700",
    "cancelled": "fill:#f6f8fa,stroke:#8c959f,stroke-dasharray:4 3",
}
COLOURS |= {"skipped": COLOURS["cancelled"], "not_started": COLOURS["cancelled"]}


def run_to_text(spec: GraphSpec, run: RunView) -> str:
    """Draw the run as a text outline, with each agent's deliveries and errors."""
    order = plan(spec)
    lines = [visible(f"{spec.name}: {_ending(run)}")]
    wide = max(map(len, spec.agents))
    for number, generation in enumerate(order.generations, 1):
        for name in generation:
            turns = run.turns.get(name, [])
            output = "<- output" if name == spec.output else ""
            about = [_status(turns).replace("_", " "), *_figures(turns), _model(spec, name, turns), output]
            lines.append(visible(f"{number:>3}. {name:<{wide}}  " + "  ".join(part for part in about if part)))
            lines += [visible(f"       {detail}") for detail in _below(spec, run, name)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def run_to_mermaid(spec: GraphSpec, run: RunView) -> str:
    """Draw the run as a Mermaid flowchart, with agents coloured by status."""
    number = {name: f"a{index}" for index, name in enumerate(spec.agents)}
    lines = ["flowchart LR"]
    for name in plan(spec).steps:
        turns = run.turns.get(name, [])
        shape = ('(["', '"])') if name == spec.output else ('["', '"]')
        about = [_status(turns).replace("_", " "), *_figures(turns)]
        body = f"<b>{escape_mermaid(name)}</b><br/>{escape_mermaid(', '.join(about))}"
        lines.append(f"    {number[name]}{shape[0]}{body}{shape[1]}:::{_status(turns)}")
    for edge in spec.edges:
        reports = run.edges.get((edge.sender, edge.receiver), [])
        arrow = ARROWS[_used(reports) or "text"] if reports else "-.-"
        label = f'|"{escape_mermaid(_edge(reports))}"|' if reports else ""
        lines.append(f"    {number[edge.sender]} {arrow}{label} {number[edge.receiver]}")
    used = dict.fromkeys(_status(run.turns.get(name, [])) for name in spec.agents)
    lines += [f"    classDef {status} {COLOURS[status]}" for status in used if status in COLOURS]
    return "\n".join(lines) + "\n"


def run_to_svg(spec: GraphSpec, run: RunView) -> str:
    """Draw the run as an SVG, with agents coloured by status and edges as the payloads took them."""
    order = plan(spec)
    boxes = {}
    for name in order.steps:
        turns = run.turns.get(name, [])
        figures = _figures(turns)
        status = _status(turns)
        notes = (", ".join([status.replace("_", " "), *figures[:1]]), ", ".join(figures[1:]))
        errors = "; ".join(turn.error for turn in turns if turn.error)
        label = _model(spec, name, turns)
        boxes[name] = Box(name, label, (), name == spec.output, status, tuple(filter(None, notes)), errors)
    lines = []
    for edge in spec.edges:
        reports = run.edges.get((edge.sender, edge.receiver), [])
        channel = _used(reports) or "none"
        fell = "; ".join(dict.fromkeys(report.fallback_reason for report in reports if report.fallback_reason))
        lines.append(
            Line(
                edge.sender,
                edge.receiver,
                channel,
                _edge(reports) if reports else "",
                fell,
                edge.max_rounds is not None,
            )
        )
    return draw(spec.name, _ending(run), order.generations, boxes, lines)


def _ending(run: RunView) -> str:
    return f"{run.title}, {run.status} after {run.seconds:.2f} s" + (f": {run.error}" if run.error else "")


def _status(turns: Sequence[AgentResult]) -> str:
    """Return an agent's status: that of its last turn, unless an earlier one failed."""
    statuses = [turn.status for turn in turns]
    return "failed" if "failed" in statuses else statuses[-1] if statuses else "not_started"


def _figures(turns: Sequence[AgentResult]) -> list[str]:
    """List seconds, rounds, and tokens read, reused and written."""
    done = [turn for turn in turns if turn.status == "finished"]
    if not done:
        return []
    parts = [f"{sum(turn.timing.total for turn in done):.2f} s"]
    number = done[-1].turn.partition("#")[2].partition("[")[0]
    total = turns[-1].turns  # a result keeps a loop's last few turns and their total number
    count = f"the last {len(turns)} of {total:,} turns" if total > len(turns) else f"{len(turns)} turns"
    parts += [count] if len(turns) > 1 else [f"round {number}"] if number else []
    for word, kind in (("read", "prefilled"), ("reused", "reused"), ("wrote", "generated")):
        count = sum(getattr(turn.tokens, kind) for turn in done)
        parts += [f"{word} {count:,}"] if count else []
    parts += dict.fromkeys(f"ended by {turn.finish_reason}" for turn in done if turn.is_cut)
    return parts


def _below(spec: GraphSpec, run: RunView, name: str) -> list[str]:
    turns = run.turns.get(name, [])
    out = []
    for edge in spec.edges:
        reports = run.edges.get((edge.sender, name), []) if edge.receiver == name else []
        if reports:
            out.append(f"from {edge.sender}: {_edge(reports)}")
            out += dict.fromkeys(
                f"  not as asked: {report.fallback_reason}" for report in reports if report.fallback_reason
            )
    out += [f"error: {turn.error}" for turn in turns if turn.error]
    if len(turns) > 1:
        out += [", ".join([f"{turn.turn}: {turn.status}", *_figures([turn])]) for turn in turns[:MOST_TURNS]]
        out += [f"... and {len(turns) - MOST_TURNS} turns more"] if len(turns) > MOST_TURNS else []
    return out


def _model(spec: GraphSpec, name: str, turns: Sequence[AgentResult]) -> str:
    return next((turn.model for turn in turns if turn.model), "") or model_label(spec, name)


def _used(reports: Sequence[EdgeReport]) -> str | None:
    return reports[-1].channel_used if reports else None


def _edge(reports: Sequence[EdgeReport]) -> str:
    """Describe an edge's traffic in a few words."""
    last = reports[-1]
    fell = any(report.fallback_reason for report in reports)
    parts = [f"{last.channel_used}, not {last.asked}" if fell else last.channel_used]
    size = sum(report.bytes for report in reports)
    parts += [format_bytes(size)] if size else []
    for word, kind in (("fused", "positions_fused"), ("grafted", "positions_grafted")):
        count = sum(getattr(report, kind) for report in reports)
        parts += [f"{count:,} {word}"] if count else []
    parts += [f"{len(reports)} times"] if len(reports) > 1 else []
    return ", ".join(parts)
