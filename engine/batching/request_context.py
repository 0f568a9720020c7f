"""The run and tenant that requests are made for: set around an agent's turn, seen by every request within it.

A turn makes requests in many places (prefills, sharers' prefills, scores, replies), and none of them passes this along.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

__all__ = ["RequestContext", "RunKey", "current_context", "join_run", "request_context"]


class RunKey:
    """A run, as engines know it. `over` is set when it ends: its caches will not grow any more."""

    over = False


@dataclass(frozen=True, eq=False)
class RequestContext:
    """Who asks. An engine is fair between runs; within one, the request that most agents wait for goes first."""

    # Requests of one run share its turns; None: every request is a run of its own. An engine keeps it as long as the
    # run's caches: where it held them itself, they would never be freed.
    run: object = None
    depth: int = 0  # agents on the longest way from here to the run's output
    tenant: str | None = None  # what one tenant has prefilled is never found by another
    holds: bool = False  # whether the run keeps the caches of this turn for later ones
    reuse: bool = True  # take what was prefilled before; off where time is measured


_asking: ContextVar[RequestContext] = ContextVar("cachegraph_account", default=RequestContext())  # noqa: B039  # frozen


def current_context() -> RequestContext:
    """The context of this task's requests."""
    return _asking.get()


@contextmanager
def request_context(who: RequestContext) -> Iterator[None]:
    """Within the block, and in tasks started in it, requests are made for `who`."""
    token = _asking.set(who)
    try:
        yield
    finally:
        _asking.reset(token)


def join_run(run: object, depth: int, holds: bool = False) -> RequestContext:
    """An agent's context in a run; a run within another run's agent counts as that run."""
    outer = current_context()
    return replace(outer, run=run if outer.run is None else outer.run, depth=outer.depth + depth, holds=holds)
