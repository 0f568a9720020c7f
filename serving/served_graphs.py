"""The recipes of a server: loaded once, looked up by a request's model name."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import time
from typing import TYPE_CHECKING, Any

from anyio.to_thread import run_sync

from cachegraph.agents.base import Agent
from cachegraph.agents.spec import AgentSpec
from cachegraph.channels.spec import CHANNELS, Channel
from cachegraph.common.did_you_mean import suggest
from cachegraph.errors import ChannelError, InputError, RecipeError
from cachegraph.graph.graph import Graph
from cachegraph.graph.plan.wiring import Wiring
from cachegraph.graph.recipe.load import answering, remembers
from cachegraph.graph.recipe.spec import GraphSpec
from cachegraph.graph.run.subgraph import SubgraphAgent, all_nodes

from .describe import describe
from .errors import NOT_AGAIN, ApiError
from .hide_paths import hide_paths
from .recipe_source import RecipeSource

if TYPE_CHECKING:
    from cachegraph.engine.engine import Engine

__all__ = ["ServedGraph", "ServedGraphs", "ServedVariant", "Speaker"]


KEPT = 32  # copies of a recipe with channels by edge
_Mixed = tuple[Channel | None, tuple[tuple[tuple[str, str], Channel], ...]]


@dataclass(frozen=True)
class Speaker:
    """The agent that writes the reply."""

    name: str  # full name, as in events
    streams: bool  # whether its text deltas are the reply; false if it may write another reply later
    agent: Agent

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count these texts' tokens for its model; an estimate without a local tokenizer."""
        engine = self.agent.peer().sharer
        tokenizer = engine.model.tokenizer if engine is not None else None
        if tokenizer is None:
            return sum(len(text) // 4 for text in texts)
        return sum(len(tokenizer.encode_words(text).ids) for text in texts)


@dataclass(frozen=True)
class ServedVariant:
    """A recipe over one channel, with loaded models and decided edges."""

    graph: Graph
    speaker: Speaker


class ServedGraph:
    """A recipe, and its copies over other channels, which share its models."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.name = graph.spec.name
        self.created = int(time())
        self.source = RecipeSource(graph)
        self._copies: dict[Channel, Graph] = {}
        self._mixed: dict[_Mixed, Graph] = {}  # copies with other channels on some edges, the latest last
        self._copying = threading.Lock()  # protects both: runs are resumed in threads

    def variant_of(self, spec: GraphSpec) -> Graph | None:
        """Return the recipe or its copy that matches this spec; None for another recipe."""
        channels: dict[tuple[str, str], Channel] = {(edge.sender, edge.receiver): edge.channel for edge in spec.edges}
        if channels.keys() != {(edge.sender, edge.receiver) for edge in self.graph.spec.edges}:
            return None
        channels |= _inner_channels(spec)
        for channel in (None, *CHANNELS):
            for edges in ({}, channels):
                try:
                    copy = self._copy(channel, edges)
                except (InputError, RecipeError):
                    continue
                if copy.spec == spec:
                    return copy
        return None

    def read_files(self) -> None:
        """Read the included recipes, whose files may change while the server runs."""
        _ = self.description, self.remembers, self.source.sha256

    @cached_property
    def description(self) -> Mapping[str, Any]:
        """The recipe as JSON, as it was loaded."""
        return describe(self.graph.spec, self.graph.folder, self.graph.warnings())

    @cached_property
    def remembers(self) -> bool:
        """Whether an agent has a memory."""
        return remembers(self.graph.spec, self.graph.folder)

    @cached_property
    def writer(self) -> AgentSpec | None:
        """The spec of the agent that writes the reply; None if no model does."""
        spec = answering(self.graph.spec, self.graph.folder)
        entry = spec.agents[spec.output]
        return entry if isinstance(entry, AgentSpec) else None

    async def open(
        self, channel: Channel | None = None, edges: Mapping[tuple[str, str], Channel] | None = None
    ) -> ServedVariant:
        """Return the recipe over this channel, or over its own; `edges` switches single edges.

        Raises ApiError if it can't run over these channels.
        """
        if channel is None and not edges:
            return ServedVariant(self.graph, _speaker(await self.graph.awire()))
        try:
            copy = self._copy(channel, edges or {})
            return ServedVariant(copy, _speaker(await copy.awire()))
        except (ChannelError, InputError, RecipeError) as error:
            way = "these channels" if channel is None else repr(channel)
            words = hide_paths(f"the recipe {self.name!r} can't run over {way}: {error}")
            raise ApiError(400, words, "channel_unavailable", "channels" if edges else "model") from error

    def _copy(self, channel: Channel | None, edges: Mapping[tuple[str, str], Channel]) -> Graph:
        """Return the copy over these channels, and keep the latest ones: each has its own decided edges."""
        with self._copying:
            if channel is not None and channel not in self._copies:
                self._copies[channel] = self.graph.with_channels(channel)
            base = self.graph if channel is None else self._copies[channel]
            if not edges:
                return base
            key = (channel, tuple(sorted(edges.items())))
            copy = self._mixed.pop(key, None) or base.with_channels(edges)
            self._mixed[key] = copy
            if len(self._mixed) > KEPT:
                del self._mixed[next(iter(self._mixed))]
            return copy


class ServedGraphs:
    """All recipes of a server by name."""

    def __init__(self, graphs: Iterable[Graph]):
        self._served: dict[str, ServedGraph] = {}
        self._engines: dict[str, Engine] = {}
        self.ready = False
        for graph in graphs:
            served = ServedGraph(graph)
            if served.name in self._served:
                raise InputError(f"two recipes are named {served.name!r}; rename one, or clients can't tell them apart")
            self._served[served.name] = served

    def __iter__(self) -> Iterator[ServedGraph]:
        return iter(self._served.values())

    def find(self, model: str) -> tuple[ServedGraph, Channel | None]:
        """Look up a model name, `recipe` or `recipe@channel`. Raises ApiError."""
        name, at, channel = model.partition("@")
        if name not in self._served:
            raise ApiError(404, f"there is no model {name!r}{suggest(name, self._served)}", "model_not_found", "model")
        if at and channel not in CHANNELS:
            words = f"there is no channel {channel!r}{suggest(channel, CHANNELS)}"
            raise ApiError(404, words, "model_not_found", "model")
        return self._served[name], next((known for known in CHANNELS if at and known == channel), None)

    def engines(self) -> Mapping[str, "Engine"]:
        """The models of this process, by their names."""
        return self._engines

    def get(self, name: str) -> ServedGraph | None:
        return self._served.get(name)

    def named(self, name: str) -> ServedGraph:
        """Return the recipe of this name. Raises ApiError."""
        if name not in self._served:
            raise ApiError(404, f"there is no graph {name[:100]!r}", "graph_not_found")
        return self._served[name]

    @property
    def why_lost(self) -> str | None:
        """Why the cluster of the models is lost for good; None while it is not, or if there is none."""
        return next((why for served in self if (why := served.graph.why_lost) is not None), None)

    def check_ready(self) -> None:
        """Raise ApiError while models are loading, and once their cluster is lost."""
        if (why := self.why_lost) is not None:
            words = f"{why}; start the server again when the cluster is back"
            raise ApiError(503, words, "cluster_lost", headers=NOT_AGAIN)
        if not self.ready:
            words = "the server is still loading its models; ask again in a few seconds"
            raise ApiError(503, words, "loading", headers={"Retry-After": "2"})

    async def open(self) -> None:
        """Load the models of one recipe after the other, so that loads never compete for memory."""
        for served in self._served.values():
            await served.open()
            served.graph.take_loading()  # no run has waited for it
            await run_sync(served.read_files)
            for _, node in all_nodes(await served.graph.awire()):
                engine = node.agent.peer().engine
                if engine is not None:
                    self._engines[engine.model.name] = engine
        self.ready = True

    async def close(self) -> None:
        """Unload the models."""
        self.ready = False
        for served in self._served.values():
            await served.graph.aclose()


def _inner_channels(spec: GraphSpec) -> dict[tuple[str, str], Channel]:
    """Return the channels that a recipe gives to single edges of its included recipes, by full names."""
    found: dict[tuple[str, str], Channel] = {}
    for name, entry in spec.graphs.items():
        for edge, channel in entry.channels.items() if isinstance(entry.channels, dict) else ():
            sender, colon, receiver = edge.partition(":")
            if colon:
                found[f"{name}/{sender}", f"{name}/{receiver}"] = channel
    return found


def _speaker(wiring: Wiring) -> Speaker:
    name, streams = "", True
    while True:
        node = wiring.nodes[wiring.outputs[0]]
        name += node.name
        streams = streams and len(wiring.outputs) == 1 and node.loop is None and node.for_each is None
        if not isinstance(node.agent, SubgraphAgent):
            return Speaker(name, streams, node.agent)
        name, wiring = f"{name}/", node.agent.wiring
