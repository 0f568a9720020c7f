"""Change the channels of edges, also inside included recipes."""

from collections.abc import Collection, Mapping
from typing import Any

from cachegraph.agents.subgraph import SubgraphSpec
from cachegraph.channels.spec import CHANNELS, Channel, EdgeSpec
from cachegraph.common.did_you_mean import suggest
from cachegraph.errors import InputError

from .spec import GraphSpec
from .spec_parts import edge_spec

__all__ = ["CacheOptions", "swap_channels", "with_inner_channels"]

Pair = tuple[str, str]  # sender and receiver
CacheOptions = dict[Pair, dict[str, Any]]  # options of cache edges that are now text edges

FLOW = {"when", "max_rounds", "until", "rounds"}  # options valid for every channel


def swap_channels(
    spec: GraphSpec, channel: Channel | Mapping[Pair, Channel], cache_options: CacheOptions | None = None
) -> GraphSpec:
    """Return the recipe with other channels: one for all edges, or by (sender, receiver).

    `cache_options` stores the options of cache edges that become text, so that swapping back restores them. Raises
    InputError for an unknown edge or channel.
    """
    known = {(edge.sender, edge.receiver): edge.channel for edge in spec.edges}
    graphs = spec.graphs
    if isinstance(channel, Mapping):
        own, inner = _split(channel, graphs)
    else:
        own, inner = dict.fromkeys(known, channel), {name: {"*": channel} for name in graphs}
    for pair in own:
        if pair not in known:
            raise InputError(f"there is no edge {pair!r}{suggest(pair, map(str, known))}")
    for name in (*own.values(), *(inner_channel for channels in inner.values() for inner_channel in channels.values())):
        if name not in CHANNELS:
            raise InputError(f"there is no channel {name!r}{suggest(name, CHANNELS)}")
    options = {} if cache_options is None else cache_options
    edges = tuple(_swap_edge(edge, {**known, **own}[edge.sender, edge.receiver], options) for edge in spec.edges)
    agents = {**spec.agents, **{name: _add_channels(graphs[name], channels) for name, channels in inner.items()}}
    return spec.model_copy(update={"edges": edges, "agents": agents})


def with_inner_channels(spec: GraphSpec, entry: SubgraphSpec) -> GraphSpec:
    """Apply an entry's channels to its included recipe. Raises InputError for an unknown edge."""
    channels, options = _by_edge(entry), CacheOptions()
    if (rest := channels.pop("*", None)) is not None:
        spec = swap_channels(spec, rest, options)
    pairs: dict[Pair, Channel] = {}
    for edge, channel in channels.items():
        sender, colon, receiver = edge.partition(":")
        if not colon:
            raise InputError(f"{edge!r} is not an edge; write 'sender:receiver', or '*' for all")
        pairs[sender, receiver] = channel
    return swap_channels(spec, pairs, options) if pairs else spec


def _by_edge(entry: SubgraphSpec) -> dict[str, Channel]:
    return {"*": entry.channels} if isinstance(entry.channels, str) else dict(entry.channels or {})


def _split(
    wanted: Mapping[Pair, Channel], graphs: Collection[str]
) -> tuple[dict[Pair, Channel], dict[str, dict[str, Channel]]]:
    """Split the channels into this recipe's edges and, by included recipe, edges such as ("team/a", "team/b")."""
    own: dict[Pair, Channel] = {}
    inner: dict[str, dict[str, Channel]] = {}
    for pair, channel in wanted.items():
        graph = pair[0].partition("/")[0]
        if graph in graphs and all(name.startswith(f"{graph}/") for name in pair):
            sender, receiver = (name.removeprefix(f"{graph}/") for name in pair)
            inner.setdefault(graph, {})[f"{sender}:{receiver}"] = channel
        else:
            own[pair] = channel
    return own, inner


def _add_channels(entry: SubgraphSpec, added: Mapping[str, Channel]) -> SubgraphSpec:
    channels = dict(added) if "*" in added else {**_by_edge(entry), **added}
    return entry.model_copy(update={"channels": channels.get("*") if channels.keys() == {"*"} else channels})


def _swap_edge(edge: EdgeSpec, channel: Channel, cache_options: CacheOptions) -> EdgeSpec:
    if edge.channel == channel:
        return edge
    pair = (edge.sender, edge.receiver)
    if edge.channel != "text":
        cache_options[pair] = edge.model_dump(exclude={"sender", "receiver", "channel", *FLOW}, exclude_unset=True)
    options = cache_options.get(pair, {}) if channel != "text" else {}
    flow = edge.model_dump(include=FLOW, exclude_unset=True)
    return edge_spec({"from": edge.sender, "to": edge.receiver, "channel": channel, **flow, **options})
