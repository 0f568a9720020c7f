"""Which replica goes to which node: a pure function of models, edges and nodes. Needs no Ray.

Two replicas between which a cache travels belong on one node, where they share memory. Among replicas that nothing
connects, the load is balanced. Replicas of one model are spread.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cachegraph.errors import ConfigError

__all__ = ["CacheTraffic", "Need", "NodeResources", "ReplicaPlacement", "place"]


@dataclass(frozen=True)
class Need:
    """What one replica takes: bytes of memory, GPUs, and custom resources by name."""

    memory: int = 0
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeResources:
    """What a node has free."""

    name: str
    memory: int
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CacheTraffic:
    """Bytes that a run sends between two models as caches."""

    sender: str
    receiver: str
    bytes: int


@dataclass(frozen=True)
class ReplicaPlacement:
    """The node of every replica, `nodes[model][number]`, and what crosses the network in a run."""

    nodes: Mapping[str, tuple[str, ...]]
    network_bytes: float  # a run's expected cache bytes between nodes, if its turns go to any replica alike
    local_bytes: float  # within nodes

    def on(self, node: str) -> list[str]:
        """The models on a node, once for each replica."""
        return [model for model, nodes in self.nodes.items() for host in nodes if host == node]


def place(
    needs: Mapping[str, Need],
    traffic: Sequence[CacheTraffic],
    nodes: Sequence[NodeResources],
    replicas: Mapping[str, int] | None = None,
) -> ReplicaPlacement:
    """Place every replica. `needs`: of one replica, by model; `replicas`: their number, by default one.

    Raises ConfigError with the arithmetic if they don't fit.
    """
    counts = {model: (replicas or {}).get(model, 1) for model in needs}
    _check_total(needs, counts, nodes)
    placer = _Placer(needs, traffic, nodes)
    for group in _groups(needs, traffic):
        # First one replica of every model of the group, then the second of every model: partners stay together.
        for number in range(max(counts[model] for model in group)):
            placer.place_group([model for model in group if number < counts[model]])
    placed = {model: tuple(placer.placed[model]) for model in needs}
    return ReplicaPlacement(placed, *split_bytes(placed, traffic))


def split_bytes(placed: Mapping[str, Sequence[str]], traffic: Iterable[CacheTraffic]) -> tuple[float, float]:
    """Bytes between nodes and bytes within nodes, if every pair of replicas is as likely as any other.

    With as many replicas at both ends, a run keeps to a pair of the same number.
    """
    network = local = 0.0
    for edge in traffic:
        senders, receivers = placed[edge.sender], placed[edge.receiver]
        if len(senders) == len(receivers):
            pairs = list(zip(senders, receivers, strict=True))
        else:
            pairs = [(a, b) for a in senders for b in receivers]
        same = sum(a == b for a, b in pairs) / len(pairs)
        local += edge.bytes * same
        network += edge.bytes * (1 - same)
    return network, local


class _Placer:
    """Free resources of the nodes, and what has been placed."""

    def __init__(self, needs: Mapping[str, Need], traffic: Sequence[CacheTraffic], nodes: Sequence[NodeResources]):
        self._needs = needs
        self._nodes = nodes
        self._memory = {node.name: node.memory for node in nodes}
        self._gpus = {node.name: node.gpus for node in nodes}
        self._resources = {node.name: dict(node.resources) for node in nodes}
        self._partners: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for edge in traffic:
            self._partners[edge.sender][edge.receiver] += edge.bytes
            self._partners[edge.receiver][edge.sender] += edge.bytes
        self.placed: dict[str, list[str]] = {model: [] for model in needs}

    def place_group(self, models: Sequence[str]) -> None:
        """Place one replica of each of these models: all on one node if they fit, else each beside its partners."""
        together = _sum([self._needs[model] for model in models])
        node = self._best(together, models, {}) if len(models) > 1 else None
        beside: dict[str, str] = {}
        for model in self._by_traffic(models):
            chosen = node or self._best(self._needs[model], [model], beside)
            if chosen is None:
                raise ConfigError(self._why_not(model))
            self._take(chosen, self._needs[model])
            self.placed[model].append(chosen)
            beside[model] = chosen

    def _by_traffic(self, models: Sequence[str]) -> list[str]:
        """The model with most traffic first, then always the one with most traffic to those before it."""
        left, order = dict.fromkeys(models), list[str]()
        linked = {model: sum(self._partners[model].values()) * 1e-12 for model in models}
        while left:
            chosen = max(left, key=lambda model: (linked[model], self._needs[model].memory))
            del left[chosen]
            order.append(chosen)
            for partner, size in self._partners[chosen].items():
                if partner in linked:
                    linked[partner] += size
        return order

    def _best(self, need: Need, models: Sequence[str], beside: Mapping[str, str]) -> str | None:
        """The node with most bytes to partners; of several, one without these models, then the emptiest."""
        bytes_there: dict[str, int] = defaultdict(int)
        for model in models:
            for partner, size in self._partners[model].items():
                if partner in beside:
                    bytes_there[beside[partner]] += size

        def rank(node: NodeResources) -> tuple[float, ...]:
            name = node.name
            same = sum(self.placed[model].count(name) for model in models)
            return (-bytes_there[name], same, -self._gpus[name], -self._memory[name])

        fitting = [node for node in self._nodes if self._fits(node.name, need)]
        return min(fitting, key=rank).name if fitting else None

    def _fits(self, node: str, need: Need) -> bool:
        return (
            need.memory <= self._memory[node]
            and need.gpus <= self._gpus[node] + 1e-9
            and all(self._resources[node].get(name, 0.0) >= most - 1e-9 for name, most in need.resources.items())
        )

    def _take(self, node: str, need: Need) -> None:
        self._memory[node] -= need.memory
        self._gpus[node] -= need.gpus
        for name, most in need.resources.items():
            self._resources[node][name] -= most

    def _why_not(self, model: str) -> str:
        need = self._needs[model]
        free = "; ".join(
            f"{node.name!r} has {_in_words(self._memory[node.name], self._gpus[node.name], self._resources[node.name])}"
            for node in self._nodes[:5]
        )
        more = f"; and {len(self._nodes) - 5} more nodes" if len(self._nodes) > 5 else ""
        return (
            f"replica {len(self.placed[model]) + 1} of {model!r} fits no node: it needs "
            f"{_in_words(need.memory, need.gpus, need.resources)}, and beside the others {free}{more}; ask for fewer "
            "replicas or less for each, or add nodes"
        )


def _check_total(needs: Mapping[str, Need], counts: Mapping[str, int], nodes: Sequence[NodeResources]) -> None:
    """Raise ConfigError if there are too few GPUs in all, with the sum that shows it."""
    if not nodes:
        raise ConfigError("the cluster has no node that is alive; start one")
    asked = sum(need.gpus * counts[model] for model, need in needs.items())
    available = sum(node.gpus for node in nodes)
    if asked > available + 1e-9:
        parts = " + ".join(
            f"{counts[model]} x {need.gpus:g} for {model!r}" for model, need in needs.items() if need.gpus
        )
        have = "one node has" if len(nodes) == 1 else f"{len(nodes)} nodes have"
        raise ConfigError(
            f"the models need {asked:g} GPUs ({parts}), and the cluster's {have} {available:g}; ask for "
            "fewer replicas or GPUs in the recipe's `models`, or add nodes"
        )


def _groups(needs: Mapping[str, Need], traffic: Sequence[CacheTraffic]) -> list[list[str]]:
    """Models connected by caches, the group with the largest need first."""
    partners: dict[str, set[str]] = defaultdict(set)
    for edge in traffic:
        partners[edge.sender].add(edge.receiver)
        partners[edge.receiver].add(edge.sender)
    groups, seen = list[list[str]](), set[str]()
    for model in needs:
        if model in seen:
            continue
        group, waiting = list[str](), [model]
        seen.add(model)
        while waiting:
            group.append(member := waiting.pop())
            new = sorted(partners[member] - seen)
            seen.update(new)
            waiting += new
        groups.append(group)
    return sorted(groups, key=lambda group: (-sum(needs[member].gpus for member in group), -_sum_memory(needs, group)))


def _sum_memory(needs: Mapping[str, Need], models: Iterable[str]) -> int:
    return sum(needs[model].memory for model in models)


def _sum(needs: Sequence[Need]) -> Need:
    resources: dict[str, float] = defaultdict(float)
    for need in needs:
        for name, most in need.resources.items():
            resources[name] += most
    return Need(sum(need.memory for need in needs), sum(need.gpus for need in needs), dict(resources))


def _in_words(memory: int, gpus: float, resources: Mapping[str, float]) -> str:
    from cachegraph.common.human import format_bytes

    parts = [format_bytes(max(memory, 0)), *([f"{gpus:g} GPUs"] if gpus else [])]
    return ", ".join([*parts, *(f"{most:g} {name}" for name, most in resources.items())])
