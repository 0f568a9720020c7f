"""The registry of agent kinds.

A new kind is one file, with its spec (an `AgentEntry`) and its agent, and one line in `KINDS`; see CONTRIBUTING.md.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Union

from pydantic import Discriminator, Tag

from .entry import AgentEntry
from .functions.spec import FunctionSpec
from .pause.spec import PauseSpec
from .spec import AgentSpec
from .subgraph import SubgraphSpec

__all__ = ["KINDS", "entry_type", "kind_of"]

# By the key that only entries of this kind have.
KINDS: dict[str, type[AgentEntry]] = {
    "model": AgentSpec,
    "graph": SubgraphSpec,
    "function": FunctionSpec,
    "pause": PauseSpec,
}
DEFAULT = "model"  # of an entry that has none of the keys


def kind_of(entry: Any) -> str:
    """The key in `KINDS` of an entry: of its raw data, or of its spec."""
    if isinstance(entry, AgentEntry):
        return next(key for key, kind in KINDS.items() if isinstance(entry, kind))
    keys = entry if isinstance(entry, Mapping) else ()
    return next((key for key in KINDS if key in keys and key != DEFAULT), DEFAULT)


def entry_type() -> Any:
    """The type of an entry of `agents`, for pydantic: one of the kinds."""
    kinds = tuple(Annotated[kind, Tag(key)] for key, kind in KINDS.items())
    return Annotated[Union[kinds], Discriminator(kind_of)]  # noqa: UP007 (its members are known at run time only)
