"""Fetch a recipe's missing models and fusers before a run, with a progress bar."""

from collections.abc import Iterator
from pathlib import Path

from cachegraph.channels.fusers.fuser_folder import find_fuser
from cachegraph.channels.fusers.hub.hub_name import is_hub_fuser
from cachegraph.channels.spec import TextEdge, named_fusers
from cachegraph.engine.catalogue import find, load_catalogue
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import ConfigError, FuserError
from cachegraph.graph.recipe.load import included
from cachegraph.graph.recipe.spec import GraphSpec

from .models import bar, pull_with_bar

__all__ = ["fetch_fusers", "fetch_models"]


def fetch_models(spec: GraphSpec, folder: Path, cluster: str | None = None) -> None:
    """Pull missing models, unless nodes of a cluster do it themselves. Raises ModelError or ConfigError."""
    if cluster not in (None, "local"):
        return
    catalogue = load_catalogue()
    for recipe, place in _with_included(spec, folder):
        for model in _local_models(recipe):
            if find(model, place, catalogue) is None:
                pull_with_bar(model, catalogue, place)


def fetch_fusers(spec: GraphSpec, folder: Path) -> None:
    """Fetch missing fusers of the hub. Raises FuserError or ConfigError if an edge may not fall back to text."""
    wanted = [
        (edge, name, place)
        for recipe, place in _with_included(spec, folder)
        for edge in recipe.edges
        if not isinstance(edge, TextEdge)
        for name in named_fusers(edge.fuser) or recipe.fusers
    ]
    for edge, name, place in wanted:
        if not is_hub_fuser(name):
            continue
        try:
            with bar(name) as progress:
                find_fuser(name, place, progress)
        except (FuserError, ConfigError):
            if edge.channel != "auto" and edge.fallback == "error":
                raise  # else the edge falls back to text, and the result says why


def _with_included(spec: GraphSpec, folder: Path) -> Iterator[tuple[GraphSpec, Path]]:
    """The recipe and its included recipes, each with its folder."""
    yield spec, folder
    yield from ((inner, file.parent) for inner, file in included(spec, folder))


def _local_models(spec: GraphSpec) -> list[ModelSpec]:
    models: dict[str, ModelSpec] = {}
    for agent in spec.speakers.values():
        entry = spec.models.get(agent.model, agent.model)
        if isinstance(entry, str):
            models.setdefault(entry, ModelSpec(source=entry))
        elif isinstance(entry, ModelSpec):
            models.setdefault(agent.model, entry)
    return list(models.values())
