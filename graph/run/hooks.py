"""Looking into a run, and meddling with it: what comparisons need besides the result."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cachegraph.agents.base import Control, Turn

__all__ = ["RunHooks"]


@dataclass(eq=False)
class RunHooks:
    """Given to a run, it keeps every agent's turn, with the caches in it, for as long as the probe lives.

    `controls` holds by agent what takes the place of the caches it gets. The turn of agent `skip` is kept, not taken.
    An agent of an included recipe goes by its full name, as in `team/expert`.
    """

    controls: Mapping[str, Control] = field(default_factory=dict)
    skip: str | None = None
    turns: dict[str, Turn] = field(default_factory=dict)
