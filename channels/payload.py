"""Payload, Route and EdgeReport of an edge; KVSpan, cache entries with the origins of their text. No torch."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .channel import Channel

if TYPE_CHECKING:
    import anyio

    from cachegraph.engine.kv.cache import KV

    from .cache.edge_plan import EdgePlan
    from .cache.sent_cache import SentCache
    from .fusers.files.card import Card
    from .spec import EdgeSpec

__all__ = ["JOINT", "EdgeReport", "KVSpan", "Origin", "Payload", "Route", "Used", "most_layers"]

JOINT = "\n\n"  # separates the texts of joined payloads

Used = Literal["text", "cache", "both"]


def most_layers(numbers: Iterable[int | None]) -> int | None:
    """The largest of several numbers of leading layers; None, which stands for all layers, if any is None."""
    known = [(number is None, number or 0) for number in numbers]
    every, most = max(known, default=(True, 0))
    return None if every else most


class Origin(NamedTuple):
    """The input or agent that a token's text comes from, and the characters [start, end) of that text it covers."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class KVSpan:
    """Entries of one row of a model: their KV, and the token and origin of each entry.

    Each KV of `segments` holds keys and values by layer, (1, kv_heads, positions, head_dim). The total number of
    positions equals the lengths of `ids` and `origins`. An origin is None for template text.
    """

    segments: tuple["KV", ...]
    ids: Sequence[int]
    origins: Sequence[Origin | None]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """The bytes of all keys and values."""
        return sum(segment.nbytes for segment in self.segments)

    @cached_property
    def names(self) -> frozenset[str]:
        """The inputs and agents whose text these entries contain."""
        return frozenset(origin.name for origin in self.origins if origin is not None)


@dataclass(eq=False)
class Payload:
    """The output of one agent's turn for its receivers: text, a KV cache, or both.

    If only cache edges leave the agent, the text is decoded from the cache once `read` is called.
    """

    sender: str
    text: str | None = None  # None: not written yet
    cache: "SentCache | None" = None  # everything that the sender has prefilled and decoded
    write: Callable[[], Awaitable[str]] | None = None
    data: Any = None  # a JSON value beside the text: a structured reply, or a function's return value
    rebuild: Callable[[], Awaitable["SentCache | None"]] | None = None  # restores a cache lost with its process
    recover: Callable[[], Awaitable["SentCache | None"]] | None = None  # recomputes `cache` if its holder has died
    turn: str = ""  # id of the turn that made this payload; set by the graph
    _writing: "anyio.Lock | None" = field(default=None, init=False, repr=False)

    async def read(self) -> str:
        """Return the text; decode it first if needed, once for all receivers, so that all read the same reply."""
        if self.text is not None:
            return self.text
        if self._writing is None:
            import anyio  # not above: a run on a server needs this module and no event loop

            self._writing = anyio.Lock()
        async with self._writing:
            if self.text is None:  # no other receiver has decoded it meanwhile
                self.text = await self.write() if self.write is not None else ""
        return self.text

    async def restore(self) -> None:
        """Recompute the cache if it was lost."""
        if self.rebuild is not None:
            self.cache = await self.rebuild()
            self.rebuild = None


@dataclass(frozen=True)
class Route:
    """The channel of an edge in this run, decided once both models are known, before either agent takes a turn."""

    edge: "EdgeSpec"
    used: Used
    fallback_reason: str | None = None  # why it differs from the requested channel
    needs_text: bool = True  # the sender must write its reply
    needs_cache: bool = False  # the sender must prefill its own prompt and keep the KV cache
    cache_layers: int | None = None  # number of leading layers of that cache that the edge reads; None: all
    plan: "EdgePlan | None" = None  # the loaded plan of the cache channel
    carries: Literal["prompt", "reply", "all"] | None = None  # the part of the sender's cache that is grafted
    fuser: str | None = None  # name or path of the fuser in use
    fuser_reason: str | None = None  # who selected it: the edge, the recipe, or its card's evidence
    cards: "tuple[Card, ...]" = ()  # of the translator and the fuser in use


@dataclass
class EdgeReport:
    """What one edge transferred in one run."""

    asked: Channel
    channel_used: Used
    fallback_reason: str | None = None
    bytes: int = 0  # of the transferred text and KV
    positions_fused: int = 0
    positions_grafted: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # transfer, fuse
    # By receiver layer, norms of a fuser's corrections of keys and values relative to both; None: the gate is closed.
    residuals: dict[int, tuple[float | None, float | None]] = field(default_factory=dict)
    fuser: str | None = None  # name or path of the fuser in use
    fuser_reason: str | None = None  # who selected it: the edge, the recipe, or its card's evidence

    @property
    def carried_nothing(self) -> bool:
        """Whether the edge used the cache channel and transferred no position."""
        return self.channel_used == "cache" and not self.positions_fused and not self.positions_grafted

    @classmethod
    def of(cls, route: Route) -> "EdgeReport":
        """Create the report of an edge that has transferred nothing yet."""
        return cls(
            route.edge.channel,
            route.used,
            route.fallback_reason,
            fuser=route.fuser,
            fuser_reason=route.fuser_reason,
        )
