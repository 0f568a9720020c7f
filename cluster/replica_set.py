"""The replicas of one model: started when needed, chosen by load and by where caches are, replaced when they die."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cachegraph.engine.spec import ModelSpec, Replicas
from cachegraph.errors import ConfigError, ModelError

from .head import ClusterLost, current_head
from .messages import ReplicaFacts
from .placement import Need
from .replica import Replica, own_versions
from .wait import call, result_of

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

__all__ = ["ReplicaHandle", "ReplicaSet"]

WAITING = 4  # turns at work on every replica from which one more is started, if the recipe allows it
IDLE_SECONDS = 60.0  # after which a replica beyond the least number ends
SESSIONS = 1000  # whose last replicas are known
REQUESTS = 1000  # that a replica takes at the same time; the model's engine queues them


@dataclass(eq=False)
class ReplicaHandle:
    """One replica, as the driver knows it."""

    actor: "ActorHandle"
    loaded: "ObjectRef[ReplicaFacts]"
    at_work: int = 0  # turns
    agents: set[str] = field(default_factory=set)  # ids of those that it has opened
    edges: set[tuple[str, str]] = field(default_factory=set)  # keys of those that it has decided
    facts: ReplicaFacts | None = None
    used: float = field(default_factory=monotonic)  # when it was last chosen, or known to load, by the clock

    @property
    def is_ready(self) -> bool:
        """Whether loading has ended, well or not."""
        return self.facts is not None or bool(ray.wait([self.loaded], timeout=0)[0])

    @property
    def node(self) -> str | None:
        """The id of its node; None until its model is loaded."""
        return None if self.facts is None else self.facts.node

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within the block, the replica takes one more turn."""
        self.at_work += 1
        try:
            yield
        finally:
            self.at_work -= 1

    async def load(self) -> ReplicaFacts:
        """Wait until the model is loaded. Raises ModelError or ConfigError with the node's name, or ReplicaGone."""
        if self.facts is None:
            _check_versions(*await call(self.actor.versions))
            try:
                self.facts = await result_of(self.loaded)
            except ClusterLost:
                raise
            except (ModelError, ConfigError) as error:
                raise type(error)(f"{error} (on a node of the cluster, whose files are not this machine's)") from error
        return self.facts


class ReplicaSet:
    """All replicas of one model. Safe for use by several event loops."""

    def __init__(
        self,
        key: str,
        model: ModelSpec,
        folder: Path,
        allow_paths: bool,
        need: Need,
        node_for: Callable[[str, int], str | None],
    ):
        self.key = key
        self.model = model
        self.need = need
        self.limits = model.replicas
        self._node_for = node_for
        self._arguments = (key, model, folder, allow_paths, _threads())
        self._handles: list[ReplicaHandle] = []
        self._served: dict[Path, ReplicaHandle] = {}  # by a session's folder, which took its last turn
        self._lock = threading.Lock()
        self._users = 0  # open agents
        self.started = 0  # replicas, those that have died included

    def choose(self, session: Path | None = None) -> ReplicaHandle:
        """The loaded replica with the fewest turns at work; of several, the one that last served this session.

        Starts the first replicas, and one more if every one has turns waiting. Raises ConfigError if they don't fit,
        ClusterLost if the connection is lost.
        """
        if (head := current_head()) is not None:
            head.check()
        with self._lock:
            limits = self.limits
            while len(self._handles) < limits.min:
                self._handles.append(self._start())
            self._end_idle(limits.min)
            if len(self._handles) < limits.most and all(handle.at_work >= WAITING for handle in self._handles):
                self._handles.append(self._start())
                self._look_later()
            last = None if session is None else self._served.pop(session, None)
            chosen = min(self._handles, key=lambda handle: (not handle.is_ready, handle.at_work, handle is not last))
            chosen.used = monotonic()
            if session is not None:
                self._served[session] = chosen
                if len(self._served) > SESSIONS:
                    del self._served[next(iter(self._served))]
            return chosen

    def _end_idle(self, least: int) -> None:
        """End replicas beyond the least number that have had no turn for a while since they were ready."""
        for handle in self._handles[least:]:
            if not handle.is_ready:
                handle.used = monotonic()
            elif not handle.at_work and monotonic() - handle.used > IDLE_SECONDS:
                self._handles.remove(handle)
                with suppress(Exception):  # it may have died before, or the connection may have ended
                    ray.kill(handle.actor)

    def _look_later(self) -> None:
        """Look for idle replicas after a while, since no turn may follow that would."""
        timer = threading.Timer(IDLE_SECONDS, self._look)
        timer.daemon = True
        timer.start()

    def _look(self) -> None:
        with self._lock:
            self._end_idle(self.limits.min)
            if len(self._handles) > self.limits.min:
                self._look_later()

    def drop(self, handle: ReplicaHandle) -> None:
        """Forget a replica that has died. Idempotent."""
        with self._lock:
            if handle in self._handles:
                self._handles.remove(handle)

    def drop_actor(self, actor: "ActorHandle") -> None:
        """The same for the replica of this actor."""
        with self._lock:
            self._handles = [handle for handle in self._handles if handle.actor != actor]

    def widen(self, limits: Replicas) -> None:
        """Allow what another recipe asks for, too."""
        with self._lock:
            most = max(limits.most, self.limits.most)
            self.limits = Replicas(min=max(limits.min, self.limits.min), max=most)

    def take(self) -> None:
        """One more agent uses the replicas."""
        with self._lock:
            self._users += 1

    def give_back(self) -> None:
        """One agent less; the replicas end with the last."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.close()

    def close(self) -> None:
        """End all replicas."""
        with self._lock:
            handles, self._handles = self._handles, []
        head = current_head()
        if head is not None and head.why_lost is not None:
            return  # nobody can be asked to end them; nodes end what has lost its driver
        for handle in handles:
            with suppress(Exception):  # it may have died before
                ray.kill(handle.actor)

    @property
    def is_used(self) -> bool:
        """Whether an agent that uses the replicas is open, or about to be."""
        return self._users > 0

    @property
    def handles(self) -> list[ReplicaHandle]:
        """The replicas that are there now."""
        with self._lock:
            return list(self._handles)

    def _start(self) -> ReplicaHandle:
        self.started += 1
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": self.need.gpus, "resources": dict(self.need.resources)}
        if self.model.memory is not None:
            options["memory"] = int(self.model.memory)
        node = self._node_for(self.key, len(self._handles))
        if node is not None:  # soft: if that node dies before the replica is there, any other will do
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        make = ray.remote(max_concurrency=REQUESTS, max_restarts=0, **options)
        actor = make(Replica).remote(*self._arguments)
        return ReplicaHandle(actor, actor.load.remote())


def _threads() -> int | None:
    """How many threads a replica computes with: as many as this process was told to use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else None


def _check_versions(node: str, versions: Mapping[str, str]) -> None:
    for name, here in own_versions().items():
        there = versions.get(name, "not known")
        if here != there:
            raise ConfigError(
                f"{name} is {here} here and {there} on the cluster's node {node[:8]}; install the same version on both"
            )
