"""For whom an engine works, across processes: runs are objects in one process, and ids between processes."""

from uuid import uuid4
from weakref import WeakKeyDictionary, WeakValueDictionary

from cachegraph.engine.batching.request_context import RequestContext, RunKey, current_context

from .messages import Asker

__all__ = ["Runs", "current_asker"]

_ids: WeakKeyDictionary[object, str] = WeakKeyDictionary()


def current_asker() -> Asker:
    """The context of this task's requests, for another process."""
    context = current_context()
    run = None if context.run is None else _ids.setdefault(context.run, uuid4().hex)
    return Asker(run, context.depth, context.tenant, context.holds, context.reuse)


class Runs:
    """The runs that a replica works for."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[str, RunKey] = WeakValueDictionary()

    def context(self, asker: Asker) -> RequestContext:
        """The context for requests of this process; the same run for the same id."""
        run: RunKey | None = None
        if asker.run is not None:
            run = self._known.setdefault(asker.run, RunKey())
            _ids[run] = asker.run
        return RequestContext(run, asker.depth, asker.tenant, asker.holds, asker.reuse)

    def end(self, runs: list[str]) -> None:
        """These runs have ended: their caches will not grow any more."""
        for run in runs:
            if (known := self._known.get(run)) is not None:
                known.over = True
