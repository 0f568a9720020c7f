"""The sessions' part of a recipe: how much an agent remembers."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, PositiveInt, Tag

from cachegraph.engine.spec import Strict

__all__ = ["Memory", "MemorySpec"]


class MemorySpec(Strict):
    """What of a session precedes the prompt. Beyond a limit the older half is left out, so that caches stay valid."""

    turns: Annotated[
        PositiveInt, Field(description="Maximum number of earlier turns; each is a prompt and its reply.")
    ] = 50
    tokens: Annotated[
        PositiveInt | None,
        Field(description="Maximum tokens of all earlier turns; by default half of a local model's context length."),
    ] = None


def _kind(value: Any) -> str:
    return "flag" if isinstance(value, bool) else "limits"


Memory = Annotated[
    Annotated[bool, Tag("flag")] | Annotated[MemorySpec, Tag("limits")],
    Discriminator(_kind),
]
