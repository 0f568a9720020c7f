"""Inspect and change a run, for comparisons."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cachegraph.agents.base import Control, Turn

__all__ = ["RunHooks"]


@dataclass(eq=False)
class RunHooks:
    """Records every agent's turn in a run, including its caches, for the lifetime of the hooks.

    `controls` maps agents to replacements of the caches they receive. The turn of agent `skip` is recorded, not taken.
    Agents of included recipes have full names, such as `team/expert`.
    """

    controls: Mapping[str, Control] = field(default_factory=dict)
    skip: str | None = None
    turns: dict[str, Turn] = field(default_factory=dict)
