"""The agents of a graph, opened and closed together."""

from collections.abc import Mapping
from time import perf_counter

import anyio

from cachegraph.agents.base import Agent, Loader

from .result import Loading

__all__ = ["AgentSet"]


class AgentSet:
    """The agents of a graph, opened together. A graph shares them with copies that differ only in channels."""

    def __init__(self, agents: Mapping[str, Agent]):
        self.agents = agents
        self.is_open = False
        self._opening = 0  # number of runs waiting for `open`
        self.loading: dict[str, dict[str, float]] = {}  # seconds of the last `open`, by model and phase
        self.waited = 0.0  # its wall-clock seconds, until a run reports them
        self.epoch = 0  # increases on close, which invalidates earlier wirings

    async def open(self) -> None:
        """Open all agents concurrently. Safe to call from many runs; raises the first error in recipe order."""
        if self.is_open:
            return
        errors: dict[str, Exception] = {}
        began = perf_counter()

        async def open_one(name: str) -> None:
            try:
                await self.agents[name].open()
            except Exception as error:  # raised below, in the recipe's order
                errors[name] = error

        self._opening += 1
        try:
            async with anyio.create_task_group() as group:
                for name in self.agents:
                    group.start_soon(open_one, name)
        except BaseException:  # cancelled, or Ctrl-C: keep opened agents only if another run waits for them
            if self._opening == 1:
                with anyio.CancelScope(shield=True):
                    await self.close()
            raise
        finally:
            self._opening -= 1
        for name in self.agents:
            if name in errors:
                await self.close()  # nothing else would: a graph that never opened is not closed
                raise errors[name]
        self.is_open, self.waited = True, perf_counter() - began
        loaders = [agent for agent in self.agents.values() if isinstance(agent, Loader)]
        self.loading = {model: dict(parts) for agent in loaders for model, parts in agent.loading.items()}

    def take_loading(self) -> Loading:
        """Return the loading times, once: only the first run waited for them."""
        waited, self.waited = self.waited, 0.0
        return Loading(waited, self.loading) if waited and self.loading else Loading()

    async def close(self) -> None:
        """Close all agents, even if one fails; then raise the first error."""
        self.is_open = False
        self.epoch += 1
        first: Exception | None = None
        for agent in self.agents.values():
            try:
                await agent.close()
            except Exception as error:  # raised once all are closed
                first = first or error
        if first is not None:
            raise first
