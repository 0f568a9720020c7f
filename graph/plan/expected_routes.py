"""Routes of a recipe's edges, predicted before models load. No torch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cachegraph.agents.model_peer import model_peer
from cachegraph.agents.prompt.prompt_reads import prompt_reads
from cachegraph.agents.spec import EndpointSpec
from cachegraph.agents.subgraph import SubgraphSpec
from cachegraph.channels.decide import expected_route
from cachegraph.channels.payload import Route
from cachegraph.channels.peer import Peer
from cachegraph.channels.spec import TextEdge
from cachegraph.engine.catalogue import Catalogue, load_catalogue
from cachegraph.engine.catalogue.resolve import resolve
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import ModelError

from ..recipe.spec import GraphSpec

__all__ = ["expected_routes"]

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
