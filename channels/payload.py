"""Payload, route and report of an edge, and the entries of a KV cache with whose text they are. No torch."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .spec import Channel, EdgeSpec

if TYPE_CHECKING:
    from cachegraph.engine.kv.cache import KV

    from .cache.edge_plan import EdgePlan
    from .cache.sent_cache import SentCache

__all__ = ["JOINT", "EdgeReport", "KVSpan", "Origin", "Payload", "Route", "Used"]

JOINT = "\n\n"  # between the texts of several payloads

Used = Literal["text", "cache", "both"]


class Origin(NamedTuple):
    """The input or agent whose text a token is, and which of that text's characters it covers: [start, end)."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class KVSpan:
    """Entries of one row of a model: their KV, and for each entry its token and its origin.

    Each KV of `segments` holds layers of keys and values, (1, kv_heads, positions, head_dim); their positions add up to
    the lengths of `ids` and `origins`. An origin is None where the entry is template text.
    """

    segments: tuple["KV", ...]
    ids: Sequence[int]
    origins: Sequence[Origin | None]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """The memory of all keys and values."""
        return sum(segment.nbytes for segment in self.segments)

    @cached_property
    def names(self) -> frozenset[str]:
        """The inputs and agents whose text is in these entries."""
        return frozenset(origin.name for origin in self.origins if origin is not None)


@dataclass(eq=False)
class Payload:
    """What one agent's turn hands to its receivers: text, a KV cache, or both.

    Where only cache edges leave the agent, it writes no text until `read` is called; it then continues from the cache.
    """

    sender: str
    text: str | None = None  # None: not written yet
    cache: "SentCache | None" = None  # what the sender has prefilled and decoded
    write: Callable[[], Awaitable[str]] | None = None
    data: Any = None  # a JSON value beside the text: a structured reply, the value that a function returned
    rebuild: Callable[[], Awaitable["SentCache | None"]] | None = None  # for a cache lost with an earlier process
    turn: str = ""  # id of the turn that made this payload; set by the graph

    async def read(self) -> str:
        """The text; written now if it was not written before."""
        if self.text is None:
            self.text = await self.write() if self.write is not None else ""
        return self.text

    async def restore(self) -> None:
        """Compute the cache again if it was lost."""
        if self.rebuild is not None:
            self.cache = await self.rebuild()
            self.rebuild = None


@dataclass(frozen=True)
class Route:
    """The channel of an edge in this run. Decided once both models are known, before either agent takes a turn."""

    edge: EdgeSpec
    used: Used
    fallback_reason: str | None = None  # why it is not the channel that was asked for
    needs_text: bool = True  # the sender must write its reply
    needs_cache: bool = False  # the sender must prefill its own prompt and keep the KV cache
    plan: "EdgePlan | None" = None  # what the cache channel has loaded for this edge
    carries: Literal["prompt", "reply", "all"] | None = None  # the part of the sender's cache that is grafted
    fuser: str | None = None  # the fuser in use, as it was named or found
    fuser_reason: str | None = None  # who chose it: the edge, the recipe, or its card's evidence


@dataclass
class EdgeReport:
    """What one edge transferred in one run."""

    asked: Channel
    channel_used: Used
    fallback_reason: str | None = None
    bytes: int = 0  # of the text and the KV that were transferred
    positions_fused: int = 0
    positions_grafted: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # transfer, fuse
    # By receiver layer, norm of a fuser's correction of keys and of values over theirs; None: the gate is closed.
    residuals: dict[int, tuple[float | None, float | None]] = field(default_factory=dict)
    fuser: str | None = None  # the fuser that was used
    fuser_reason: str | None = None  # who chose it: the edge, the recipe, or its card's evidence

    @property
    def carried_nothing(self) -> bool:
        """Whether the edge used the cache channel and transferred no position."""
        return self.channel_used == "cache" and not self.positions_fused and not self.positions_grafted

    @classmethod
    def of(cls, route: Route) -> "EdgeReport":
        """The report of an edge that has transferred nothing yet."""
        return cls(
            route.edge.channel,
            route.used,
            route.fallback_reason,
            fuser=route.fuser,
            fuser_reason=route.fuser_reason,
        )
