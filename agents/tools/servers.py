"""The tool servers of one graph: each is started once for all agents that use it, and stopped with the last."""

from collections.abc import Collection, Mapping
from pathlib import Path

from .server import ToolServer
from .spec import ToolServerSpec

__all__ = ["Toolbox"]


class Toolbox:
    """Servers by the names that the recipe gives them. None runs before an agent has taken it."""

    def __init__(
        self,
        specs: Mapping[str, ToolServerSpec] | None = None,
        folder: Path = Path(),
        allow_local: bool = True,
    ):
        self._servers = {name: ToolServer(name, spec, folder, allow_local) for name, spec in (specs or {}).items()}
        self._users: dict[str, set[str]] = {name: set() for name in self._servers}

    def take(self, agent: str, names: Collection[str]) -> dict[str, ToolServer]:
        """The servers of these names, kept for this agent until it gives them back."""
        for name in names:
            self._users[name].add(agent)
        return {name: self._servers[name] for name in names}

    async def give_back(self, agent: str) -> None:
        """This agent needs its servers no more; those that nobody else has taken are stopped. Idempotent."""
        for name, users in self._users.items():
            if agent in users:
                users.remove(agent)
                if not users:
                    await self._servers[name].close()
