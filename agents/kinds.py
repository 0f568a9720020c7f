"""The registry of agent kinds.

To add a kind, write one file with its spec (an `AgentEntry`) and its agent, and add a line to `KINDS`; see
CONTRIBUTING.md.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Union

from pydantic import Discriminator, Tag

from .entry import AgentEntry
from .functions.spec import FunctionSpec
from .pause.spec import PauseSpec
from .spec import AgentSpec
from .subgraph import SubgraphSpec

__all__ = ["KINDS", "entry_type", "kind_of", "why_two_kinds"]

# By the key that only entries of this kind have.
KINDS: dict[str, type[AgentEntry]] = {
    "model": AgentSpec,
    "graph": SubgraphSpec,
    "function": FunctionSpec,
    "pause": PauseSpec,
}
DEFAULT = "model"  # for an entry with none of the keys


def kind_of(entry: Any) -> str:
    """The key in `KINDS` of an entry, given as raw data or as a spec."""
    if isinstance(entry, AgentEntry):
        return next(key for key, kind in KINDS.items() if isinstance(entry, kind))
    keys = entry if isinstance(entry, Mapping) else ()
    return next((key for key in KINDS if key in keys and key != DEFAULT), DEFAULT)


def why_two_kinds(name: str, keys: Collection[str]) -> str | None:
    """Why an entry with these keys is no agent, if they name more than one kind."""
    named = [repr(key) for key in KINDS if key in keys]
    if len(named) < 2:
        return None
    return f"agent {name!r} has {', '.join(named[:-1])} and {named[-1]}, and an agent is one of them"


def entry_type() -> Any:
    """The pydantic type of an entry of `agents`: a union of the kinds."""
    kinds = tuple(Annotated[kind, Tag(key)] for key, kind in KINDS.items())
    return Annotated[Union[kinds], Discriminator(kind_of)]  # noqa: UP007 (its members are known at run time only)
