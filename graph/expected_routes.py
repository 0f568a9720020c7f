"""The routes that a recipe's edges will take, as far as that is known before any model is loaded. No torch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cachegraph.agents.peer import model_peer
from cachegraph.agents.prompt_reads import prompt_reads
from cachegraph.agents.spec import AgentSpec, EndpointSpec, SubgraphSpec
from cachegraph.channels.base import Peer
from cachegraph.channels.decide import expected_route
from cachegraph.channels.message import Route
from cachegraph.channels.spec import TextEdge
from cachegraph.engine.spec import ModelSpec

from .spec import GraphSpec

__all__ = ["expected_routes"]

Included = Callable[[SubgraphSpec], tuple[GraphSpec, Path]]


def expected_routes(spec: GraphSpec, folder: Path, included: Included) -> dict[tuple[str, str], Route]:
    """By (sender, receiver), the route of every edge of a checked recipe in `folder`.

    Two agents count as one model where the recipe names the same source. `included` reads the recipe in an agent's
    place, and its folder.
    """
    names = {name for edge in spec.edges if not isinstance(edge, TextEdge) for name in (edge.sender, edge.receiver)}
    peers = {name: _peer(spec, name, included) for name in names}
    return {
        (edge.sender, edge.receiver): Route(edge, "text")
        if isinstance(edge, TextEdge)
        else expected_route(edge, peers[edge.sender], peers[edge.receiver], folder, spec.fusers)
        for edge in spec.edges
    }


def _peer(spec: GraphSpec, name: str, included: Included) -> Peer:
    entry = spec.agents[name]
    if isinstance(entry, SubgraphSpec):
        inner, _ = included(entry)
        peer = _peer(inner, inner.output, included)
        why = f"agent {name!r} is a graph, and what a graph is given are words"
        return replace(peer, agent=name, why_none_in=why, reads=frozenset(f"{name}/{read}" for read in peer.reads))
    if not isinstance(entry, AgentSpec):
        return Peer(name, "", why_no_cache=f"agent {name!r} has no model, and so no KV cache")
    model = spec.models.get(entry.model, entry.model)
    if isinstance(model, EndpointSpec):
        return Peer(name, model.model, why_no_cache=f"agent {name!r} sits behind an endpoint, which has no KV cache")
    source = model.source if isinstance(model, ModelSpec) else model
    upstream = [edge.sender for edge in spec.edges if edge.receiver == name]
    return model_peer(name, entry, prompt_reads(name, entry, upstream), source)
