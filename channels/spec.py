"""The edges of a recipe, and which channel each uses."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag

from cachegraph.engine.spec import Strict

from .channel import CHANNELS, Channel

__all__ = [
    "CHANNELS",
    "AutoEdge",
    "BothEdge",
    "CacheEdge",
    "Channel",
    "EdgeSpec",
    "FuserPair",
    "TextEdge",
    "named_fusers",
]

Name = Annotated[str, Field(min_length=1)]


class _Edge(Strict):
    sender: Annotated[Name, Field(alias="from", description="The agent that sends.")]
    receiver: Annotated[Name, Field(alias="to", description="The agent that receives.")]
    when: Annotated[
        str | None, Field(description="Expression over inputs and replies; if it is false, the edge carries nothing.")
    ] = None
    max_rounds: Annotated[
        PositiveInt | None, Field(description="For an edge that closes a loop: the maximum number of rounds.")
    ] = None
    until: Annotated[
        str | None, Field(description="Expression over inputs and replies; if it is true, the loop ends early.")
    ] = None
    rounds: Annotated[
        Literal["newest", "all"],
        Field(description="For an edge that leaves a loop: the sender's newest reply, or all its replies joined."),
    ] = "newest"


class TextEdge(_Edge):
    """Transfers the text of the sender's reply."""

    channel: Literal["text"] = "text"


class FuserPair(Strict):
    """A fuser and a translator for one edge."""

    fuse: Annotated[Name, Field(description="The fuser for text that both ends have read.")]
    graft: Annotated[Name, Field(description="The translator for text that only the sender has read.")]


def _shape(value: object) -> str:
    return "pair" if isinstance(value, dict | FuserPair) else "name"


def named_fusers(fuser: str | FuserPair | None) -> tuple[str, ...]:
    """List the fusers named by an edge's `fuser`."""
    if isinstance(fuser, FuserPair):
        return fuser.fuse, fuser.graft
    return () if fuser is None else (fuser,)


class _CacheCapable(_Edge):
    fuser: Annotated[
        Annotated[Annotated[str, Tag("name")] | Annotated[FuserPair, Tag("pair")], Discriminator(_shape)] | None,
        Field(
            description="A fuser's name, folder or hub:ORGANISATION/NAME/FOLDER; two, for what both have read and for "
            "what only the sender has read, as {fuse: ..., graft: ...}; agents of one model need none."
        ),
    ] = None
    fallback: Annotated[Literal["text", "error"], Field(description="What to do if the cache can't be sent.")] = "text"
    align: Annotated[
        Literal["auto", "ids", "first", "longest", "offsets"],
        Field(description="Rule that pairs each receiver token with a sharer token; auto: as the fuser was trained."),
    ] = "auto"
    carries: Annotated[
        Literal["prompt", "reply", "all"] | None,
        Field(
            description="What of the sender travels: its prompt, its reply, or all; by default what its turn produces, "
            "the reply of an agent that writes and the prompt of one that only reads."
        ),
    ] = None
    include_response: Annotated[
        bool, Field(description="For fusing: also correct the positions of the receiver's reply, token by token.")
    ] = False


class CacheEdge(_CacheCapable):
    """Transfers the sender's KV cache: fused where both ends have read the text, grafted where only the sender has."""

    channel: Literal["cache"]


class BothEdge(_CacheCapable):
    """Transfers the text of the sender's reply, and its cache."""

    channel: Literal["both"]


class AutoEdge(_CacheCapable):
    """A cache edge if the cache carries everything that the text would, else a text edge."""

    channel: Literal["auto"]


def _kind(value: object) -> str:
    kind = value.get("channel", "text") if isinstance(value, dict) else getattr(value, "channel", "text")
    return kind if isinstance(kind, str) else "text"


EdgeSpec = Annotated[
    Annotated[TextEdge, Tag("text")]
    | Annotated[CacheEdge, Tag("cache")]
    | Annotated[BothEdge, Tag("both")]
    | Annotated[AutoEdge, Tag("auto")],
    Discriminator(_kind),
]
