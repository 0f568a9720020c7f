"""The agents of a graph, opened and closed together."""

import threading
from collections.abc import Mapping
from time import perf_counter

import anyio

from cachegraph.agents.base import Agent, Loader
from cachegraph.errors import RunError

from .result import Loading

__all__ = ["AgentSet"]

OPEN = -1
POLL_SECONDS = 0.005
CLOSED = "the graph was closed while a run was opening its models; close it when its runs have ended"
_changing = threading.Lock()  # protects the state of every set


class AgentSet:
    """The agents of a graph, opened together. A graph shares them with copies that differ only in channels."""

    def __init__(self, agents: Mapping[str, Agent]):
        self.agents = agents
        self.is_open = False
        self._opening = 0  # number of runs waiting for `open`
        self._closing = 0  # number of calls of `close` at work
        self.loading: dict[str, dict[str, float]] = {}  # seconds of the last `open`, by model and phase
        self.waited = 0.0  # its wall-clock seconds, until a run reports them
        self.epoch = 0  # increases on close, which invalidates earlier wirings

    @property
    def is_loaded(self) -> bool:
        """Whether any agent may be open."""
        return self.is_open or self._opening > 0

    async def open(self) -> None:
        """Open all agents concurrently. Safe to call from many runs, also of several threads.

        Raises the first error in recipe order, or RunError if the agents are closed meanwhile.
        """
        began = perf_counter()
        while (epoch := self._begin_opening()) is None:  # noqa: ASYNC110  (by another thread's event loop, perhaps)
            await anyio.sleep(POLL_SECONDS)
        if epoch == OPEN:
            return
        try:
            await self._open_all()
            with _changing:
                if self.epoch != epoch:  # some agents were opened before the close and some after it
                    raise RunError(CLOSED)
                if not self.is_open:  # otherwise another run was first
                    self._note_open(began)
        finally:  # also cancelled, or Ctrl-C
            with _changing:
                self._opening -= 1
                if last := not self.is_loaded:  # no other run waits for the agents or has them
                    self._begin_closing()
            if last:
                with anyio.CancelScope(shield=True):
                    await self._close_all()

    def _begin_opening(self) -> int | None:
        """Count a run that opens the agents, and return their epoch: OPEN if all are open, None while they close."""
        with _changing:
            if self.is_open:
                return OPEN
            if self._closing:
                return None
            self._opening += 1
            return self.epoch

    def _note_open(self, began: float) -> None:
        self.is_open, self.waited = True, perf_counter() - began
        loaders = [agent for agent in self.agents.values() if isinstance(agent, Loader)]
        self.loading = {model: dict(parts) for agent in loaders for model, parts in agent.loading.items()}

    async def _open_all(self) -> None:
        errors: dict[str, Exception] = {}

        async def open_one(name: str) -> None:
            try:
                await self.agents[name].open()
            except Exception as error:  # raised below, in the recipe's order
                errors[name] = error

        async with anyio.create_task_group() as group:
            for name in self.agents:
                group.start_soon(open_one, name)
        for name in self.agents:
            if name in errors:
                raise errors[name]

    def take_loading(self) -> Loading:
        """Return the loading times, once: only the first run waited for them."""
        waited, self.waited = self.waited, 0.0
        return Loading(waited, self.loading) if waited and self.loading else Loading()

    async def close(self) -> None:
        """Close all agents, even if one fails; then raise the first error."""
        with _changing:
            self._begin_closing()
        await self._close_all()

    def _begin_closing(self) -> None:
        self.is_open = False
        self.epoch += 1
        self._closing += 1

    async def _close_all(self) -> None:
        first: Exception | None = None
        try:
            for agent in self.agents.values():
                try:
                    await agent.close()
                except Exception as error:  # raised once all are closed
                    first = first or error
        finally:
            with _changing:
                self._closing -= 1
        if first is not None:
            raise first
