"""What a server announces of a recipe: the files that it consists of, and what a client needs to run it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cachegraph.channels.fusers.fuser_folder import find_fuser
from cachegraph.channels.spec import TextEdge, named_fusers
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import CachegraphError
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.load import included, read_spec
from cachegraph.graph.recipe.spec import GraphSpec

from .local_servers import AnnouncedRecipe, hashes_of, permissions

__all__ = ["announced"]


def announced(graph: Graph) -> AnnouncedRecipe | None:
    """Describe a graph of a recipe file.

    None if it runs code, whose changes no hash of its files could show, or if its file has changed since.
    """
    spec, file = graph.spec, graph.file
    if file is None or any(_runs_code(recipe) for recipe, _ in _recipes(spec, file)):
        return None
    may = graph.permissions
    hashes = hashes_of(sorted({str(path.resolve()) for path in _files(spec, file)}))
    if read_spec(file) != spec:  # changed since it was loaded
        return None
    return AnnouncedRecipe(
        spec.name,
        str(file.resolve()),
        hashes,
        {name: entry.kind for name, entry in spec.inputs.items()},
        spec.output,
        permissions(may.allow_env, may.allow_paths, may.allow_code, may.allow_local, graph.strict),
    )


def _recipes(spec: GraphSpec, file: Path) -> Iterator[tuple[GraphSpec, Path]]:
    yield spec, file
    yield from included(spec, file.resolve().parent)


def _runs_code(spec: GraphSpec) -> bool:
    bodies = [agent.model_dump(by_alias=True, exclude_defaults=True) for agent in spec.agents.values()]
    pairs = zip(spec.agents.values(), bodies, strict=True)
    return bool(spec.tools) or any(type(agent).code_in(body) is not None for agent, body in pairs)


def _files(spec: GraphSpec, file: Path) -> Iterator[Path]:
    """Yield the recipes, their chat templates, and the cards of their fusers."""
    for recipe, place in _recipes(spec, file):
        yield place
        folder = place.resolve().parent
        for model in recipe.models.values():
            if isinstance(model, ModelSpec) and model.chat_template is not None:
                yield folder / model.chat_template
        edges = [edge for edge in recipe.edges if not isinstance(edge, TextEdge)]
        for name in {*recipe.fusers, *(name for edge in edges for name in named_fusers(edge.fuser))}:
            with suppress(CachegraphError):  # the edge falls back to text
                yield find_fuser(name, folder) / "card.json"
