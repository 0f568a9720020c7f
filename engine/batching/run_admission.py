"""Admission by run: which runs hold memory, and whether another request lets all of them finish. Knows no torch.

A run whose agents send caches keeps what one request computed while the next ones are computed. If every run were
admitted whose first request fits, they could fill the memory together and none could finish. So a request of such a run
is admitted only if all of these runs could still finish one after the other, the oldest first: the banker's algorithm.
The memory that a run needs is estimated: its first request, plus the growth of earlier runs beyond theirs.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .kv_budget import KVBudget
from .protocols import AdmittedRequest
from .request_context import RunKey

__all__ = ["RunAdmission"]

GUESS = 16  # times its first request: what a run is assumed to need until one has ended
REMEMBERED = 16  # ended runs from which others are estimated


@dataclass
class _Claim:
    since: int  # place of its first request in the order of admission
    first: int  # bytes of that request
    most: int  # its peak, in bytes
    use: int  # bytes that it holds now


class RunAdmission:
    """The runs that hold memory, each from its first admitted request until it holds nothing and is over."""

    def __init__(self, budget: KVBudget):
        self._budget = budget
        self._claims: dict[object, _Claim] = {}  # oldest first
        # Of the last ended runs: the bytes of the first request, and the growth beyond it.
        self._ended: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)

    def __contains__(self, run: object) -> bool:
        return run in self._claims

    def since(self, run: object) -> int | None:
        """The place of the run's first request in the order of admission; None for a run that holds nothing."""
        claim = self._claims.get(run)
        return claim.since if claim is not None else None

    def enter(self, request: AdmittedRequest, size: int, place: int) -> None:
        """Note that a request of this size, in bytes, was admitted."""
        if request.holds and request.run not in self._claims:
            self._claims[request.run] = _Claim(place, size, size, size)

    def update(self, rows: Mapping[object, int], waiting: Iterable[object], place: int) -> None:
        """Update all runs: `rows` are the bytes of each run's requests at work, `waiting` the runs of those that wait.

        A graph's run stays until it is over, though it may hold nothing between two of its turns.
        """
        waiting = set(waiting)
        for run in waiting:
            if run not in self._claims and (held := self._budget.held_by(run)):
                self._claims[run] = _Claim(place, held, held, held)
        for run, claim in list(self._claims.items()):
            claim.use = self._budget.held_by(run) + rows.get(run, 0)
            claim.most = max(claim.most, claim.use)
            if run.over if isinstance(run, RunKey) else not (claim.use or run in waiting):
                del self._claims[run]
                self._ended.append((max(claim.first, 1), claim.most - claim.first))

    def is_safe(self, request: AdmittedRequest, size: int, free: int) -> bool:
        """Whether all runs could still finish if a request of this size were admitted and left `free` bytes."""
        run = request.run
        oldest = next(iter(self._claims), run)
        if run == oldest or not (request.holds or run in self._claims):  # the latter frees all when it ends
            return True
        if run not in self._claims:
            free -= self._growth_of(size)
        for claimant, claim in self._claims.items():
            use = claim.use + (size if claimant == run else 0)
            if max(claim.most, claim.first + self._growth_of(claim.first)) - use > free:
                return False
            free += use
        return True

    def _growth_of(self, first: int) -> int:
        """What a run is likely to need beyond a first request of this size."""
        seen = max((claim.most - claim.first for claim in self._claims.values()), default=0)
        if not self._ended:
            return max(seen, (GUESS - 1) * first)
        like = [growth for other, growth in self._ended if other >= first]
        if not like:  # no run that began with so much has ended yet
            largest, growth = max(self._ended)
            like = [growth * first // largest]
        return max(seen, max(like) * (len(self._ended) + 1) // len(self._ended))  # the fewer, the more cautious
