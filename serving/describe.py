"""A recipe as JSON: what a drawing needs, without prompts, addresses, files and keys."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cachegraph.channels.spec import CHANNELS, EdgeSpec
from cachegraph.errors import InputError, RecipeError
from cachegraph.graph.recipe.load import included_by_name, inner_edges
from cachegraph.graph.recipe.spec import GraphSpec
from cachegraph.graph.recipe.yaml_positions import read_yaml

from .hide_paths import hide_paths

if TYPE_CHECKING:
    from cachegraph.graph.run_warning import RunWarning
    from cachegraph.graph.store.records import StoredRun

__all__ = ["describe", "stored_graph"]


def describe(spec: GraphSpec, folder: Path, warnings: "Iterable[RunWarning]" = ()) -> dict[str, Any]:
    """Describe a recipe's inputs, agents, edges and outputs, and agents and edges of the recipes that it includes."""
    inner_agents, inner = _inside(spec, folder)
    return {
        "name": spec.name,
        "description": spec.description,
        "inputs": {
            name: {"description": entry.description, "type": entry.kind, "default": entry.default}
            for name, entry in spec.inputs.items()
        },
        "agents": {name: _agent(spec, name) for name in spec.agents},
        "edges": [_edge(edge) for edge in spec.edges],
        "inner_agents": inner_agents,
        "inner_edges": [_edge(edge) for edge in inner],
        "outputs": dict(spec.outputs),
        "channels": list(CHANNELS) if spec.edges or inner else [],
        "warnings": [hide_paths(str(warning)) for warning in warnings],
    }


def stored_graph(stored: "StoredRun") -> dict[str, Any]:
    """Describe the recipe with which a run began, which may differ from the one that the server has now.

    Raises InputError if this version can't read it.
    """
    try:
        spec = GraphSpec.model_validate(read_yaml(stored.recipe, "<run>").root.value, strict=True)
        return describe(spec, Path(stored.setting.folder))
    except (RecipeError, ValidationError) as error:
        raise InputError(f"the recipe of run {stored.id!r} can't be read by this version of cachegraph") from error


def _edge(edge: EdgeSpec) -> dict[str, Any]:
    return {
        "from": edge.sender,
        "to": edge.receiver,
        "channel": edge.channel,
        "when": edge.when,
        "max_rounds": edge.max_rounds,
    }


def _inside(spec: GraphSpec, folder: Path) -> tuple[dict[str, Any], list[EdgeSpec]]:
    """Agents and edges of included recipes, by full names; none if a recipe's file has changed since, or has gone."""
    try:
        recipes = list(included_by_name(spec, folder))
        agents = {f"{name}/{agent}": _agent(inner, agent) for name, inner in recipes for agent in inner.agents}
        return agents, list(inner_edges(spec, folder))
    except (InputError, RecipeError, ValidationError, RecursionError):
        return {}, []


def _agent(spec: GraphSpec, name: str) -> dict[str, Any]:
    entry = spec.agents[name]
    kind = next((key for key in ("model", "graph", "function", "pause") if hasattr(entry, key)), "model")
    source = getattr(entry, kind) if kind in ("model", "graph") else None
    about = {kind if source else "name": hide_paths(str(source)) if source else name}
    return {"kind": kind, **about, "reads_only": entry.reads_only}
