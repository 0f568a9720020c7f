"""The warning type of recipes and runs."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["RunWarning", "WarningKind"]

WarningKind = Literal["dropped", "unused_input", "single_braces", "empty_edge", "withheld", "cut", "falls_back"]


@dataclass(frozen=True)
class RunWarning:
    """One warning. `names` are the affected inputs and agents."""

    kind: WarningKind
    message: str
    names: tuple[str, ...] = ()
    edge: tuple[str, str] | None = None  # (sender, receiver), if one edge is responsible

    def inside(self, agent: str) -> "RunWarning":
        """Return the warning of this agent's included recipe, as the outer graph reports it."""
        names, edge = tuple(f"{agent}/{name}" for name in self.names), self.edge
        if edge is not None:
            edge = (f"{agent}/{edge[0]}", f"{agent}/{edge[1]}")
        return RunWarning(self.kind, f"in {agent!r}: {self.message}", names, edge)

    def __str__(self) -> str:
        return self.message
