"""What travels on an edge, and what is known of the journey. Knows no torch: the cache plane is opaque here."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .spec import Channel, EdgeSpec

__all__ = ["JOINT", "EdgeReport", "Payload", "Route", "Used", "join_payloads"]

JOINT = "\n\n"

Used = Literal["text", "cache", "both"]


@dataclass(eq=False)
class Payload:
    """One agent's turn as others may receive it.

    The text plane is what the agent wrote. Where only cache edges leave the agent it is not written unless somebody
    asks: `await payload.read()` writes it then, continuing from the cache.
    """

    sender: str
    text: str | None = None
    cache: Any = None  # channels.cache.plane.CachePlane: what the sender read and wrote, and its KV
    write: Callable[[], Awaitable[str]] | None = None
    data: Any = None  # a JSON value beside the text: a structured reply, what a function returned
    rebuild: Callable[[], Awaitable[Any]] | None = None  # for a cache that was lost with the process that had it
    turn: str = ""  # the id of the turn that this is the reply of; set by the graph

    async def read(self) -> str:
        """The text plane, written now if it was not before."""
        if self.text is None:
            self.text = await self.write() if self.write is not None else ""
        return self.text

    async def restore(self) -> None:
        """Have the cache plane again, if it was lost."""
        if self.rebuild is not None:
            self.cache = await self.rebuild()
            self.rebuild = None


def join_payloads(sender: str, turn: str, payloads: Sequence[Payload]) -> Payload:
    """Several turns' payloads as one: texts with a blank line between, caches behind each other, the newest data."""

    def cache() -> Any:
        from .cache.sent_cache import join_planes

        planes = [payload.cache for payload in payloads if payload.cache is not None]
        return join_planes(turn, planes) if planes else None

    async def write() -> str:
        return JOINT.join([await payload.read() for payload in payloads])

    async def rebuild() -> Any:
        for payload in payloads:
            await payload.restore()
        return cache()

    joined = Payload(sender, turn=turn, data=payloads[-1].data if payloads else None)
    if any(payload.text is None for payload in payloads):
        joined.write = write
    else:
        joined.text = JOINT.join(payload.text or "" for payload in payloads)
    if any(payload.rebuild is not None for payload in payloads):
        joined.rebuild = rebuild
    elif any(payload.cache is not None for payload in payloads):
        joined.cache = cache()
    return joined


@dataclass(frozen=True)
class Route:
    """How an edge will be travelled in this run: decided once both models are known, before either speaks."""

    edge: EdgeSpec
    used: Used
    fallback_reason: str | None = None  # why not what was asked
    needs_text: bool = True  # the sender must write its reply
    needs_cache: bool = False  # the sender must prefill its own prompt and keep the KV cache
    plan: Any = None  # what the cache channel prepared for this edge (a fuser, a rotation); opaque to the graph
    carries: Literal["prompt", "reply", "all"] | None = None  # what of the sender is grafted
    fuser: str | None = None  # the fuser in use, as it was named or found
    fuser_reason: str | None = None  # who chose it: the edge, the recipe, or its card's evidence


@dataclass
class EdgeReport:
    """What one edge did in one run."""

    asked: Channel
    channel_used: Used
    fallback_reason: str | None = None
    bytes: int = 0  # of the planes that were handed over
    positions_fused: int = 0
    positions_grafted: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # transfer, fuse
    # By receiver layer, what a fuser added to keys and to values, as a part of their size; None: the gate is closed.
    residuals: dict[int, tuple[float | None, float | None]] = field(default_factory=dict)
    fuser: str | None = None  # the fuser that was used
    fuser_reason: str | None = None  # who chose it: the edge, the recipe, or its card's evidence

    @property
    def carried_nothing(self) -> bool:
        """Whether a cache was to travel and not one position did."""
        return self.channel_used == "cache" and not self.positions_fused and not self.positions_grafted

    @classmethod
    def of(cls, route: Route) -> "EdgeReport":
        """The report of an edge that has not travelled yet."""
        return cls(
            route.edge.channel,
            route.used,
            route.fallback_reason,
            fuser=route.fuser,
            fuser_reason=route.fuser_reason,
        )
