"""Draw a recipe.

Names and descriptions are untrusted, so every one is escaped for its output format.
"""

import re
from collections.abc import Sequence
from textwrap import shorten

from cachegraph.agents.entry import AgentEntry
from cachegraph.agents.prompt.template import TemplateProblem, compile_template
from cachegraph.channels.spec import EdgeSpec, named_fusers
from cachegraph.common.printable import printable

from ..plan.plan import plan
from ..recipe.spec import GraphSpec
from ..run_warning import RunWarning
from .svg import Box, Line, draw

__all__ = ["to_mermaid", "to_svg", "to_text"]

ARROWS = {"text": "-->", "cache": "==>", "both": "==>", "auto": "-.->"}
PLAIN = re.compile(r"[^\w .,:/()@+~·-]", re.ASCII)


def to_text(spec: GraphSpec, warnings: Sequence[RunWarning] = ()) -> str:
    """Draw the graph as a text outline in run order, followed by the sources that its channels would lose."""
    order = plan(spec)
    lines = [visible(f"{spec.name}: {spec.description}" if spec.description else spec.name)]
    for name, given in spec.inputs.items():
        default = (
            "required" if given.default is None else f"default {shorten(str(given.default), 40, placeholder='...')!r}"
        )
        lines.append(visible(f"  input {name} ({default})" + (f": {given.description}" if given.description else "")))
    outputs = spec.outputs.values()
    wide = max(map(len, spec.agents))
    for number, generation in enumerate(order.generations, 1):
        for name in generation:
            step = order.steps[name]
            reads = [
                *_reads(spec, spec.agents[name]),
                *(f"{e.sender} ({_label(spec, e) or e.channel})" for e in step.incoming),
            ]
            parts = [f"{number:>3}. {name:<{wide}}  {model_label(spec, name)}"]
            parts += [f"reads {', '.join(reads)}"] if reads else []
            parts += _notes(spec.agents[name])
            parts += ["<- output"] if name in outputs else []
            lines.append(visible("  ".join(parts)))
    lines += [visible(f"warning: {warning}") for warning in warnings]
    return "\n".join(lines) + "\n"


def to_mermaid(spec: GraphSpec, warnings: Sequence[RunWarning] = ()) -> str:
    """Draw the graph as a Mermaid flowchart. Lossy edges are dashed, with a legend."""
    order = plan(spec)
    number = {name: f"a{index}" for index, name in enumerate(spec.agents)}
    lines = ["flowchart LR"]
    for name in order.steps:
        shape = ('(["', '"])') if name in spec.outputs.values() else _shape(spec.agents[name])
        body = f"<b>{escape_mermaid(name)}</b><br/>{escape_mermaid(model_label(spec, name))}"
        body += "".join(f"<br/>{escape_mermaid(note)}" for note in _notes(spec.agents[name]))
        lines.append(f"    {number[name]}{shape[0]}{body}{shape[1]}")
    for edge in spec.edges:
        said = _label(spec, edge)
        label = f'|"{escape_mermaid(said)}"|' if said else ""
        lines.append(f"    {number[edge.sender]} {ARROWS[edge.channel]}{label} {number[edge.receiver]}")
    dropping = _dropping(warnings)
    dashed = [str(i) for i, edge in enumerate(spec.edges) if (edge.sender, edge.receiver) in dropping]
    if dashed:
        lines.append(f"    linkStyle {','.join(dashed)} stroke:#bc4c00,stroke-dasharray:3 5")
        lines.append('    legend["dashed: something is lost here"]:::legend')
        lines.append("    classDef legend fill:none,stroke:none")
    return "\n".join(lines) + "\n"


def to_svg(spec: GraphSpec, warnings: Sequence[RunWarning] = ()) -> str:
    """Draw the graph as a standalone SVG, readable on light and dark backgrounds.

    Lossy edges are dashed, with a legend.
    """
    order, dropping = plan(spec), _dropping(warnings)
    boxes = {
        name: Box(
            name,
            model_label(spec, name),
            tuple(_reads(spec, spec.agents[name])),
            name in spec.outputs.values(),
            notes=tuple(_notes(spec.agents[name])),
        )
        for name in order.steps
    }
    lines = [
        Line(
            edge.sender,
            edge.receiver,
            edge.channel,
            _label(spec, edge),
            leads_back=edge.max_rounds is not None,
            may_be_skipped=edge.when is not None or _case(spec, edge) is not None,
            drops=dropping.get((edge.sender, edge.receiver), ""),
        )
        for edge in spec.edges
    ]
    return draw(spec.name, spec.description, order.generations, boxes, lines)


def _dropping(warnings: Sequence[RunWarning]) -> dict[tuple[str, str], str]:
    """Map each lossy edge to what it loses."""
    return {warning.edge: warning.message for warning in warnings if warning.edge is not None}


def edge_label(edge: EdgeSpec) -> str:
    """Describe an edge in a few words."""
    fusers = " + ".join(named_fusers(getattr(edge, "fuser", None)))
    return f"{edge.channel} · {fusers}" if fusers else edge.channel


def _label(spec: GraphSpec, edge: EdgeSpec) -> str:
    """Label an edge with its channel, unless it is text, and its condition."""
    parts = [] if edge.channel == "text" else [edge_label(edge)]
    case = _case(spec, edge)
    parts += [case] if case is not None else []
    parts += [f"if {shorten(edge.when, 40, placeholder='...')}"] if edge.when is not None else []
    parts += [f"up to {edge.max_rounds} rounds"] if edge.max_rounds is not None else []
    parts += [f"until {shorten(edge.until, 40, placeholder='...')}"] if edge.until is not None else []
    parts += ["all rounds"] if edge.rounds == "all" else []
    return ", ".join(parts)


def _case(spec: GraphSpec, edge: EdgeSpec) -> str | None:
    """Return the condition under which the sender routes here; None if its route doesn't name the receiver."""
    cases = [case for case in spec.agents[edge.sender].route if case.to == edge.receiver]
    if not cases:
        return None
    when = cases[0].when
    return "otherwise" if when is None else f"if {shorten(when, 40, placeholder='...')}"


def _notes(entry: AgentEntry) -> list[str]:
    """Describe how often and when an agent takes its turn, if unusual."""
    notes = (
        [] if entry.for_each is None else [f"for each {entry.item} of {shorten(entry.for_each, 30, placeholder='...')}"]
    )
    return notes if entry.join == "all" else [*notes, f"joins {entry.join}"]


def _shape(entry: AgentEntry) -> tuple[str, str]:
    """Return Mermaid's brackets for the agent's kind, or a hexagon for an agent that routes."""
    return entry.mermaid_brackets or (('{{"', '"}}') if entry.route else ('["', '"]'))


def model_label(spec: GraphSpec, agent: str) -> str:
    """Name the model, function or recipe of an agent."""
    return spec.agents[agent].label(spec.models)


def _reads(spec: GraphSpec, agent: AgentEntry) -> list[str]:
    """Return the inputs that an agent's templates name, or all inputs if it may take any."""
    if agent.takes_all_inputs:
        return list(spec.inputs)
    names: set[str] = set()
    for _, source in agent.templates():
        try:
            names |= compile_template(source).names
        except TemplateProblem:
            continue  # drawn anyway; the checks report it
    return [name for name in spec.inputs if name in names]


def visible(text: str) -> str:
    """Make untrusted text safe for a terminal: escape sequences become visible and inert."""
    return printable(text.replace("\n", " ").replace("\t", " "))


def escape_mermaid(text: str) -> str:
    """Escape text for a Mermaid label, which interprets HTML and Mermaid markup."""
    return PLAIN.sub(lambda match: f"#{ord(match[0])};", visible(text))
