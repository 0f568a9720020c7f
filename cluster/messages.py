"""What driver and replicas send each other. Turns and replies travel as they are, without their callbacks."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from cachegraph.agents.base import Delivery, Turn
from cachegraph.agents.spec import AgentSpec
from cachegraph.agents.tools.agent_tools import NamedTools
from cachegraph.channels.payload import Payload
from cachegraph.channels.peer import Peer
from cachegraph.channels.spec import EdgeSpec
from cachegraph.engine.kv.cache import KV
from cachegraph.engine.model.load import LoadedModel
from cachegraph.engine.request import Cost

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from torch import Tensor

__all__ = [
    "AgentSetup",
    "Asker",
    "EdgeSetup",
    "Missing",
    "Opened",
    "PrefillAnswer",
    "ReplicaAnswer",
    "ReplicaFacts",
    "TurnRequest",
    "deliveries_of",
    "portable_turn",
    "without_network",
]

T = TypeVar("T")


@dataclass(frozen=True)
class ReplicaFacts:
    """A replica that has loaded its model. `model` has neither network nor tokenizer."""

    model: LoadedModel
    node: str
    process: int
    waited: bool  # the model was loaded for this replica


@dataclass(frozen=True)
class AgentSetup:
    """An agent as a replica creates it."""

    id: str
    name: str
    spec: AgentSpec
    inputs: tuple[str, ...]
    upstream: tuple[str, ...]
    tools: NamedTools | None = None


@dataclass(frozen=True)
class Opened:
    """An agent that a replica has opened: its end of edges, and the seconds that loading its model took."""

    peer: Peer
    loading: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class EdgeSetup:
    """An edge into an agent. `model` is the key of the sender's model; None if the sender has none."""

    agent: str
    edge: EdgeSpec
    sender: Peer
    model: str | None
    folder: Path
    fusers: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        return self.agent, self.edge.model_dump_json()


@dataclass(frozen=True)
class Asker:
    """The fields of a RequestContext. `run` is an id, equal for requests of one run."""

    run: str | None
    depth: int
    tenant: str | None
    holds: bool
    reuse: bool


@dataclass(frozen=True)
class TurnRequest:
    """One turn. `sharers`: by key of a model, the replica that fusers ask for its cache.

    `room`: bytes of a cache that the object store has room for; None: store it whatever its size.
    """

    id: str
    agent: str
    turn: Turn
    asker: Asker
    sharers: Mapping[str, "ActorHandle"]
    room: int | None = None
    streams: bool = False


@dataclass(frozen=True)
class Missing:
    """What a turn needs before it can be taken: texts by sender, lost caches by sender, sharers by key."""

    texts: frozenset[str] = frozenset()
    caches: frozenset[str] = frozenset()
    sharers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ReplicaAnswer(Generic[T]):
    """The outcome of a request: a value, an error of the agent, or what is missing."""

    value: T | None = None
    error: Exception | None = None
    missing: Missing | None = None
    prompt: str | None = None  # as the agent has rendered it
    writes: bool = False  # the replica can still write the reply's text


@dataclass(frozen=True)
class PrefillAnswer:
    """What a sharer has read: the stored KV of these ids, logits, (1 or ids, vocab), if asked for, and the cost."""

    own: tuple[KV, ...]
    logits: "Tensor | None"
    cost: Cost = field(default_factory=Cost)


def portable_turn(turn: Turn) -> Turn:
    """The turn as it travels: without callbacks, plans, and caches on this machine or that its edges don't read."""
    control = turn.control
    if control is not None and control.other is not None:
        control = replace(control, other=portable_turn(control.other))
    deliveries = tuple(_portable(delivery) for delivery in turn.deliveries)
    return replace(
        turn,
        deliveries=deliveries,
        on_text=None,
        on_prompt=None,
        on_tool=None,
        on_prefill=None,
        within=None,
        memory=None if turn.memory is None else turn.memory.snapshot(),
        control=control,
    )


def _portable(delivery: Delivery) -> Delivery:
    payload, route = delivery.payload, delivery.route
    cache = payload.cache if route.needs_cache else None
    sent = Payload(payload.sender, payload.text, cache, data=payload.data, turn=payload.turn)
    return Delivery(replace(route, plan=None, cards=()), sent)


def without_network(model: LoadedModel, *, tokenizer: bool) -> LoadedModel:
    """What other processes need to know of a model."""
    return replace(model, network=None, decoder=None, tokenizer=model.tokenizer if tokenizer else None)


def deliveries_of(turn: Turn) -> list[Delivery]:
    """All deliveries of a turn, and of the turn whose caches a control takes instead."""
    other = turn.control.other if turn.control is not None else None
    return [*turn.deliveries, *(deliveries_of(other) if other is not None else ())]
