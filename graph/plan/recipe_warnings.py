"""Warnings of a recipe before it runs."""

from pathlib import Path

from cachegraph.channels.payload import Route
from cachegraph.channels.spec import TextEdge

from ..recipe.raw_spec import Finding
from ..recipe.single_braces import find_single_braces, single_brace_matches
from ..recipe.spec import GraphSpec
from ..run_warning import RunWarning
from .dataflow import Dataflow
from .expected_routes import expected_routes, read_included

__all__ = ["expected_warnings", "place_warning"]


def place_warning(spec: GraphSpec, warning: RunWarning) -> Finding:
    """Attach a warning to its path in the recipe."""
    names = warning.names
    if warning.kind == "single_braces" and names[0] in spec.agents:
        agent, key, name = names
        source = dict(spec.agents[agent].templates())[key]
        start = next(match.start() for match in single_brace_matches(source) if match[1] == name)
        line, column = source.count("\n", 0, start) + 1, start - source.rfind("\n", 0, start)
        return Finding(warning.message, ("agents", agent, *key.split(".", 1)), spot=(line, column))
    pairs = [(edge.sender, edge.receiver) for edge in spec.edges]
    if warning.edge in pairs:
        return Finding(warning.message, ("edges", pairs.index(warning.edge)))
    if names[0] not in spec.inputs and names[0] not in spec.agents:  # belongs to an included recipe
        return Finding(warning.message, ("agents", names[0].partition("/")[0]), at_key=True)
    section = "inputs" if names[0] in spec.inputs else "agents"
    return Finding(warning.message, (section, names[0]), at_key=True)


def expected_warnings(spec: GraphSpec, folder: Path) -> tuple[list[RunWarning], str | None]:
    """Return the warnings of a checked recipe in `folder` that are known before its models load.

    Also returns the reason why no output would hear any input, if none would.
    """
    routes = expected_routes(spec, folder, lambda entry: read_included(entry, folder))
    flow = Dataflow(spec, routes)
    warnings = [*flow.warnings(), *find_single_braces(spec), *filter(None, map(_fallback, routes.values()))]
    cut = flow.cut_output()
    for name, entry in spec.graphs.items():
        inner, inner_cut = expected_warnings(*read_included(entry, folder))
        warnings += [warning.inside(name) for warning in inner]
        cut = cut or (f"in {name!r}: {inner_cut}" if inner_cut is not None else None)
    return warnings, cut


def _fallback(route: Route) -> RunWarning | None:
    """Warn of an edge that asks for a cache and won't hand one over."""
    edge = route.edge
    if isinstance(edge, TextEdge) or edge.channel == "auto" or route.fallback_reason is None:
        return None
    what = "hands over text" if edge.fallback == "text" else "can't run, since it has 'fallback: error'"
    message = f"edge {edge.sender!r} -> {edge.receiver!r} {what}: {route.fallback_reason}"
    return RunWarning("falls_back", message, (edge.sender, edge.receiver), (edge.sender, edge.receiver))
