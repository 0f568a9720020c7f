"""Admission by run: which runs hold memory, and whether another row lets all of them finish. Knows no torch.

A run whose agents hand over caches keeps what one row computed while the next rows are computed. If every run came in
whose first row fits, they could fill the memory together and none could finish. So a row of such a run is admitted only
if afterwards all of these runs could still finish one after the other, the oldest first: the banker's algorithm. What a
run needs in all nobody knows; it is estimated as its first row, plus what runs of this engine grew by beyond theirs.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from .kv_budget import Memory
from .request_context import RunKey

__all__ = ["Claims"]

GUESS = 16  # times its first row: what a run needs in all, until one has ended
REMEMBERED = 16  # runs that ended, by which others are estimated


class _Row(Protocol):
    @property
    def run(self) -> object: ...
    @property
    def holds(self) -> bool:
        """Whether the run keeps what this row computes, for rows to come."""


@dataclass
class _Claim:
    since: int  # the place of its first row in the order of admission
    first: int  # bytes of that row
    most: int  # bytes that it had at any one time
    use: int  # bytes that it has now


class Claims:
    """The runs that hold memory, from the first row of each that was admitted until nothing is left of the run."""

    def __init__(self, memory: Memory):
        self._memory = memory
        self._claims: dict[object, _Claim] = {}  # oldest first
        self._ended: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)  # of the last: first row, and growth beyond it

    def __contains__(self, run: object) -> bool:
        return run in self._claims

    def since(self, run: object) -> int | None:
        """The place of the run's first row in the order of admission; None for a run that holds nothing."""
        claim = self._claims.get(run)
        return claim.since if claim is not None else None

    def enter(self, row: _Row, size: int, place: int) -> None:
        """A row of so many bytes was admitted."""
        if row.holds and row.run not in self._claims:
            self._claims[row.run] = _Claim(place, size, size, size)

    def update(self, rows: Mapping[object, int], waiting: Iterable[object], place: int) -> None:
        """Take stock: by run, the bytes of its rows at work, and whose rows wait.

        A graph's run stays until it is over, though between two of its turns it may hold nothing.
        """
        waiting = set(waiting)
        for run in waiting:
            if run not in self._claims and (held := self._memory.held_by(run)):
                self._claims[run] = _Claim(place, held, held, held)
        for run, claim in list(self._claims.items()):
            claim.use = self._memory.held_by(run) + rows.get(run, 0)
            claim.most = max(claim.most, claim.use)
            if run.over if isinstance(run, RunKey) else not (claim.use or run in waiting):
                del self._claims[run]
                self._ended.append((max(claim.first, 1), claim.most - claim.first))

    def is_safe(self, row: _Row, size: int, free: int) -> bool:
        """Whether all runs could still finish if a row of this size came in and left so many bytes free."""
        run = row.run
        oldest = next(iter(self._claims), run)
        if run == oldest or not (row.holds or run in self._claims):  # a row whose run holds nothing ends by itself
            return True
        if run not in self._claims:
            free -= self._growth_of(size)
        for each, claim in self._claims.items():
            use = claim.use + (size if each == run else 0)
            if max(claim.most, claim.first + self._growth_of(claim.first)) - use > free:
                return False
            free += use
        return True

    def _growth_of(self, first: int) -> int:
        """What a run is likely to need beyond a first row of this size."""
        seen = max((claim.most - claim.first for claim in self._claims.values()), default=0)
        if not self._ended:
            return max(seen, (GUESS - 1) * first)
        like = [growth for other, growth in self._ended if other >= first]
        if not like:  # of runs that begin with so much nothing is known yet
            largest, growth = max(self._ended)
            like = [growth * first // largest]
        return max(seen, max(like) * (len(self._ended) + 1) // len(self._ended))  # the fewer, the more cautious
