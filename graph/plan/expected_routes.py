"""Routes of a recipe's edges, predicted before models load. No torch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cachegraph.agents.model_peer import model_peer
from cachegraph.agents.prompt.prompt_reads import prompt_reads
from cachegraph.agents.spec import EndpointSpec
from cachegraph.agents.subgraph import SubgraphSpec
from cachegraph.channels.choose_channel import expected_route
from cachegraph.channels.payload import Route
from cachegraph.channels.peer import Peer
from cachegraph.channels.spec import TextEdge
from cachegraph.engine.catalogue import Catalogue, load_catalogue
from cachegraph.engine.catalogue.resolve import resolve
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import ModelError

from ..recipe.includes import own_file
from ..recipe.load import read_spec
from ..recipe.spec import GraphSpec
from ..recipe.swap_channels import with_inner_channels

__all__ = ["all_expected_routes", "expected_routes", "read_included"]

Included = Callable[[SubgraphSpec], tuple[GraphSpec, Path]]


def expected_routes(spec: GraphSpec, folder: Path, included: Included) -> dict[tuple[str, str], Route]:
    """Map (sender, receiver) to the expected route, for every edge of a checked recipe in `folder`.

    Two agents share a model if the recipe names the same source, under any name. `included` reads the recipe that an
    agent runs, and its folder.
    """
    names = {name for edge in spec.edges if not isinstance(edge, TextEdge) for name in (edge.sender, edge.receiver)}
    if names:
        catalogue = load_catalogue()
        peers = {name: _peer(spec, name, included, folder, catalogue) for name in names}
    return {
        (edge.sender, edge.receiver): Route(edge, "text")
        if isinstance(edge, TextEdge)
        else expected_route(edge, peers[edge.sender], peers[edge.receiver], folder, spec.fusers)
        for edge in spec.edges
    }


def all_expected_routes(spec: GraphSpec, folder: Path) -> dict[tuple[str, str], Route]:
    """As `expected_routes`, with the edges of included recipes as ("team/reader", "team/writer")."""
    routes = expected_routes(spec, folder, lambda entry: read_included(entry, folder))
    for name, entry in spec.graphs.items():
        inner = all_expected_routes(*read_included(entry, folder))
        routes |= {(f"{name}/{sender}", f"{name}/{receiver}"): route for (sender, receiver), route in inner.items()}
    return routes


def read_included(entry: SubgraphSpec, folder: Path) -> tuple[GraphSpec, Path]:
    """The recipe that an agent of a recipe in `folder` runs, with the entry's channels, and its folder."""
    file = own_file(entry, folder)
    return with_inner_channels(read_spec(file), entry), file.parent


def _peer(spec: GraphSpec, name: str, included: Included, folder: Path, catalogue: Catalogue) -> Peer:
    if (subgraph := spec.graphs.get(name)) is not None:
        inner, place = included(subgraph)
        peer = _peer(inner, inner.output, included, place, catalogue)
        why = f"agent {name!r} is a graph, and what a graph is given are words"
        reads = frozenset(f"{name}/{read}" for read in peer.reads)
        return replace(peer, agent=name, why_none_in=why, reads=reads, holds=frozenset())
    if (entry := spec.speakers.get(name)) is None:
        return Peer(name, "", why_no_cache=f"agent {name!r} {spec.agents[name].no_cache}")
    model = spec.models.get(entry.model, entry.model)
    if isinstance(model, EndpointSpec):
        why = f"agent {name!r} speaks through an endpoint, which gives no access to its KV cache"
        return Peer(name, model.model, why_no_cache=why)
    upstream = [edge.sender for edge in spec.edges if edge.receiver == name]
    shown, source = _named(ModelSpec(source=model) if isinstance(model, str) else model, folder, catalogue)
    return model_peer(name, entry, prompt_reads(name, entry, upstream), shown, source=source)


def _named(model: ModelSpec, folder: Path, catalogue: Catalogue) -> tuple[str, str]:
    """The model's name in the engine, and its source."""
    try:
        wanted = resolve(model.model_copy(update={"chat_template": None}), folder, catalogue)
    except ModelError:  # loading reports it
        return model.source, model.source
    return wanted.name, wanted.described
