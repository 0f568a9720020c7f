"""The wiring of a graph, decided once for all its runs."""

import threading
from collections.abc import Awaitable, Callable

import anyio

from ..plan.wiring import Wiring
from .agent_set import AgentSet

__all__ = ["SharedWiring"]

POLL_SECONDS = 0.005
_changing = threading.Lock()  # protects `_busy` of every wiring


class SharedWiring:
    """Decides the edges of one recipe with the first run, and again after its agents were closed.

    Deciding an edge loads its fuser, so runs that begin at once wait for the first, also in other threads.
    """

    def __init__(self) -> None:
        self._decided: tuple[AgentSet, int, Wiring] | None = None
        self._busy = False

    async def get(self, agents: AgentSet, decide: Callable[[], Awaitable[Wiring]]) -> Wiring:
        """Return the edges as decided with these agents; call `decide` if they are not."""
        if (wiring := self._current(agents)) is not None:
            return wiring
        await agents.open()  # by all runs: the agents stay open for the others if one is cancelled
        while not self._begin():  # noqa: ASYNC110  (another thread's event loop may be deciding)
            await anyio.sleep(POLL_SECONDS)
        try:
            if (wiring := self._current(agents)) is None:
                epoch = agents.epoch  # read first: a close while the edges are decided makes this wiring invalid
                wiring = await decide()
                self._decided = (agents, epoch, wiring)
            return wiring
        finally:
            self._busy = False

    def _current(self, agents: AgentSet) -> Wiring | None:
        decided = self._decided
        return decided[2] if decided is not None and decided[:2] == (agents, agents.epoch) else None

    def _begin(self) -> bool:
        with _changing:
            busy, self._busy = self._busy, True
        return not busy
