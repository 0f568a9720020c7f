"""Having all of a recipe's models on this disk before anything runs, with a bar where one must be fetched."""

from pathlib import Path

from cachegraph.engine.models import find, load_catalogue
from cachegraph.engine.spec import ModelSpec
from cachegraph.graph.spec import GraphSpec

from .models import pull_with_bar

__all__ = ["fetch_models"]


def fetch_models(spec: GraphSpec, folder: Path) -> None:
    """Pull what is missing. Raises ModelError or ConfigError."""
    catalogue = load_catalogue()
    for model in _local_models(spec):
        if find(model, folder, catalogue) is None:
            pull_with_bar(model, catalogue, folder)


def _local_models(spec: GraphSpec) -> list[ModelSpec]:
    models: dict[str, ModelSpec] = {}
    for agent in spec.agents.values():
        entry = spec.models.get(agent.model, agent.model)
        if isinstance(entry, str):
            models.setdefault(entry, ModelSpec(source=entry))
        elif isinstance(entry, ModelSpec):
            models.setdefault(agent.model, entry)
    return list(models.values())
