"""The replicas of one model: started when needed, chosen by load and by where caches are, replaced when they die."""

import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import ConfigError, ModelError

from .messages import ReplicaFacts
from .replica import Replica, own_versions
from .wait import result_of

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

__all__ = ["ReplicaHandle", "ReplicaSet"]

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
            try:
                facts: ReplicaFacts = await result_of(self.loaded)
            except (ModelError, ConfigError) as error:
                raise type(error)(f"{error} (on a node of the cluster, whose files are not this machine's)") from error
            _check_versions(facts)
            self.facts = facts
        return self.facts


class ReplicaSet:
    """All replicas of one model. Safe for use by several event loops."""

    def __init__(self, key: str, model: ModelSpec, folder: Path, allow_paths: bool):
        self.key = key
        self.model = model
        self._arguments = (key, model, folder, allow_paths, _threads())
        self._handles: list[ReplicaHandle] = []
        self._lock = threading.Lock()
        self._users = 0  # open agents
        self.started = 0  # replicas, those that have died included

    def choose(self, near: Collection[str] = ()) -> ReplicaHandle:
        """The replica with the fewest turns at work; of several, one on these nodes. Starts the first one."""
        with self._lock:
            if not self._handles:
                self._handles.append(self._start())
            return min(self._handles, key=lambda each: (each.at_work, each.node not in near))

    def drop(self, handle: ReplicaHandle) -> None:
        """Forget a replica that has died. Idempotent."""
        with self._lock:
            if handle in self._handles:
                self._handles.remove(handle)

    def drop_actor(self, actor: "ActorHandle") -> None:
        """The same for the replica of this actor."""
        with self._lock:
            self._handles = [each for each in self._handles if each.actor != actor]

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
        for handle in handles:
            with suppress(Exception):  # it may have died before
                ray.kill(handle.actor)

    @property
    def handles(self) -> list[ReplicaHandle]:
        """The replicas that are there now."""
        with self._lock:
            return list(self._handles)

    def _start(self) -> ReplicaHandle:
        self.started += 1
        actor = ray.remote(num_cpus=0, max_concurrency=REQUESTS, max_restarts=0)(Replica).remote(*self._arguments)
        return ReplicaHandle(actor, actor.load.remote())


def _threads() -> int | None:
    """How many threads a replica computes with: as many as this process was told to use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else None


def _check_versions(facts: ReplicaFacts) -> None:
    own = own_versions()
    for name, there in facts.versions.items():
        if own[name] != there:
            raise ConfigError(
                f"{name} is {own[name]} here and {there} on the cluster's node {facts.node[:8]}; install the same "
                "version on both"
            )
