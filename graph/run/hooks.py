"""Inspect and change a running run, for comparisons."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cachegraph.agents.base import Control, Turn

__all__ = ["RunHooks"]


@dataclass(eq=False)
class RunHooks:
    """Given to a run, it keeps every agent's turn, with the caches in it, for as long as the hooks live.

    `controls` holds by agent what takes the place of the caches it gets. The turn of agent `skip` is kept, not taken.
    An agent of an included recipe goes by its full name, as in `team/expert`.
    """

    controls: Mapping[str, Control] = field(default_factory=dict)
    skip: str | None = None
    turns: dict[str, Turn] = field(default_factory=dict)
