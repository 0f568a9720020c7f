"""Copies of a graph whose models run on clusters."""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from cachegraph.agents.create import ModelHost, ModelLink
from cachegraph.agents.spec import EndpointSpec
from cachegraph.channels.spec import TextEdge

from .recipe.spec import GraphSpec

if TYPE_CHECKING:
    from cachegraph.cluster.cluster import Cluster

__all__ = ["ClusterCopies", "connect", "model_links"]

_connecting = threading.RLock()  # runs in several threads connect once, and share a graph's copy


class Movable(Protocol):
    """A graph, as far as making its copies asks for it."""

    @property
    def spec(self) -> GraphSpec: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def validate(self) -> Self: ...

    def on_cluster(self, cluster: ModelHost) -> Self: ...


GraphT = TypeVar("GraphT", bound=Movable)


class ClusterCopies(Generic[GraphT]):
    """The copies of a graph, and of those that share its models. Each is made when a run first asks for it."""

    def __init__(self) -> None:
        self._copies: dict[tuple[object, ...], tuple[GraphSpec, GraphT]] = {}
        self._connected: dict[str, Cluster] = {}  # by names that callers gave

    def on(self, graph: GraphT, cluster: ModelHost | str) -> GraphT:
        """The graph's copy for this cluster. Raises InputError or ConfigError if there is no such cluster."""
        spec = graph.validate().spec
        key = (cluster, id(spec), repr(graph.settings))
        with _connecting:
            if key not in self._copies:
                self._copies[key] = spec, graph.on_cluster(self._host(cluster))
            return self._copies[key][1]

    def _host(self, cluster: ModelHost | str) -> ModelHost:
        if not isinstance(cluster, str):
            return cluster
        if cluster not in self._connected:
            self._connected[cluster] = connect(cluster)
        return self._connected[cluster]

    def take(self) -> Iterator[GraphT]:
        """Hand over every copy, to be closed."""
        with _connecting:
            copies, self._copies = self._copies, {}
        return (copy for _, copy in copies.values())

    def disconnect(self) -> None:
        """End the connections to clusters that were given by name."""
        with _connecting:
            connected, self._connected = self._connected, {}
        for cluster in connected.values():
            cluster.close()


def model_links(spec: GraphSpec, folder: Path) -> list[ModelLink]:
    """The models between which caches may travel; those of included recipes are left out."""
    links = []
    for edge in spec.edges:
        ends = [spec.speakers[name].model for name in (edge.sender, edge.receiver) if name in spec.speakers]
        models = [spec.models.get(end, end) for end in ends]
        if isinstance(edge, TextEdge) or len(models) < 2:
            continue
        sender, receiver = models
        if not isinstance(sender, EndpointSpec) and not isinstance(receiver, EndpointSpec):
            links.append(ModelLink(sender, receiver, folder))
    return links


def connect(cluster: str) -> "Cluster":
    """Connect to a cluster by its address: `local`, `auto` or `ray://HOST:PORT`."""
    from cachegraph.cluster.connect import connect

    return connect(cluster)
