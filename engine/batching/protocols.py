"""What admission and the scheduler need to know of a request, its cache and the prefix cache. Knows no torch."""

from collections.abc import Sequence
from typing import Protocol

__all__ = ["AdmittedRequest", "Evictable", "ScheduledRequest"]


class ScheduledRequest(Protocol):
    """A `RequestState`, as the scheduler sees it."""

    @property
    def remaining(self) -> int:
        """Tokens that are known and not yet computed."""

    @property
    def run(self) -> object:
        """The run that it is served for; hashable."""

    @property
    def depth(self) -> int:
        """Higher goes first within a run."""


class _Segment(Protocol):
    @property
    def nbytes(self) -> int: ...


class _Cache(Protocol):
    """A `RowCache`."""

    capacity: int

    @property
    def segments(self) -> Sequence[_Segment]: ...
    def capacity_for(self, new: int) -> int: ...
    def make_room(self, new: int) -> None: ...


class AdmittedRequest(ScheduledRequest, Protocol):
    """A `RequestState`, as admission sees it."""

    admitted: int
    error: BaseException | None

    @property
    def position_bytes(self) -> int: ...
    @property
    def cache(self) -> _Cache: ...
    @property
    def holds(self) -> bool:
        """Whether its run keeps what it computes, for later requests."""

    @property
    def can_swap(self) -> bool: ...
    def swap_out(self) -> None: ...
    def swap_in(self) -> None: ...


class Evictable(Protocol):
    """A `PrefixCache`: its blocks are evicted before any request has to give up memory."""

    @property
    def idle_bytes(self) -> int:
        """What evicting all blocks would free: nobody else reads them."""

    def evict(self) -> bool:
        """Evict a block; False if there is none."""
