"""Toolbox: the tool servers of one graph, each started once and stopped after its last agent."""

from collections.abc import Collection, Mapping
from pathlib import Path

from .server import ToolServer
from .spec import ToolServerSpec

__all__ = ["Toolbox"]


class Toolbox:
    """Servers by their names in the recipe. A server starts when an agent first takes it."""

    def __init__(
        self,
        specs: Mapping[str, ToolServerSpec] | None = None,
        folder: Path = Path(),
        allow_local: bool = True,
    ):
        self._servers = {name: ToolServer(name, spec, folder, allow_local) for name, spec in (specs or {}).items()}
        self._users: dict[str, set[str]] = {name: set() for name in self._servers}

    def take(self, agent: str, names: Collection[str]) -> dict[str, ToolServer]:
        """Take the servers of these names for an agent, until `give_back`."""
        for name in names:
            self._users[name].add(agent)
        return {name: self._servers[name] for name in names}

    async def give_back(self, agent: str) -> None:
        """Release this agent's servers and stop those that no other agent has taken. Idempotent."""
        for name, users in self._users.items():
            if agent in users:
                users.remove(agent)
                if not users:
                    await self._servers[name].close()
