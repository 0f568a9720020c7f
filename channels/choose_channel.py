"""Decide the channel of an edge from its two ends, before any model is loaded. No torch.

An edge transfers what the sender's turn produces: its reply, or the prompt of an agent that only reads. A cache edge
transfers the same as KV. If a cache can't carry it, the edge carries text and the decision states why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cachegraph.errors import ChannelError, ConfigError, FuserError

from .fusers.choose_fuser import FuserChoice, NoFuser, select_fuser
from .fusers.files.card import Carries, EdgeTask
from .payload import Route
from .peer import Peer
from .spec import AutoEdge, BothEdge, CacheEdge, EdgeSpec, TextEdge

__all__ = [
    "Caching",
    "Carries",
    "Decision",
    "as_route",
    "decide_edge",
    "expected_route",
    "fall_back",
    "nothing_private",
]

Caching = CacheEdge | BothEdge | AutoEdge


@dataclass(frozen=True)
class Decision:
    """The form in which an edge hands over, and why.

    graft: the sender's KV enters the receiver's slot, translated where `choice` names a translator.
    fuse: the receiver's own KV is corrected where both have read the same.
    joint: both at once.
    """

    form: Literal["text", "graft", "fuse", "joint"]
    reason: str | None = None  # why the edge carries text although a cache was requested
    carries: Carries | None = None  # the part of the sender's cache that is grafted
    choice: FuserChoice | None = None

    @property
    def sender_must_write(self) -> bool:
        """Whether the edge transfers the sender's reply."""
        return self.form == "text" or (self.carries is not None and self.carries != "prompt")


def decide_edge(
    edge: EdgeSpec, sender: Peer, receiver: Peer, folder: Path, fusers: Sequence[str] = (), *, fetch: bool = True
) -> Decision:
    """Decide an edge of a recipe in `folder` with the default `fusers`; loads neither models nor weights.

    If `fetch` is false, a fuser of the hub that is not on this disk counts as missing.
    """
    if isinstance(edge, TextEdge):
        return Decision("text")
    reason = (
        sender.why_no_cache
        or receiver.why_none_in
        or receiver.why_no_cache
        or (
            f"agent {receiver.agent!r} writes nothing: it hands over its prompt, so it needs the words"
            if receiver.reads_only
            else None
        )
    )
    if reason is not None:
        return Decision("text", reason)
    try:
        decision = _decide(edge, sender, receiver, folder, fusers, fetch)
    except (NoFuser, FuserError, ConfigError) as error:
        return Decision("text", str(error))
    words_stay = isinstance(edge, BothEdge) and decision.form == "fuse"  # the text travels beside the corrections
    if sender.agent in receiver.words_of and not words_stay:
        return Decision("text", receiver.words_of[sender.agent])
    return decision


def nothing_private(sender: str, receiver: str) -> str:
    """The reason for text when there is nothing to graft."""
    return (
        f"agent {receiver!r} itself reads all that {sender!r} has read, so there is nothing to graft; "
        "`carries: reply` grafts what it wrote"
    )


def _decide(edge: Caching, sender: Peer, receiver: Peer, folder: Path, fusers: Sequence[str], fetch: bool) -> Decision:
    carries = _carries(edge, sender)
    if edge.fuser is None and _same_model(sender, receiver):
        return _graft(sender, receiver, carries, None)
    tasks: list[EdgeTask] = ["private"] if _grafts_something(sender, receiver, carries) else []
    if _reads_the_same(sender, receiver) or edge.carries == "prompt" or isinstance(edge, BothEdge):
        tasks.append("shared")
    choice = select_fuser(
        edge.fuser, fusers, sender, receiver, tasks, folder, carries=_measured_as(carries), fetch=fetch
    )
    if choice.graft is not None and choice.fuse is not None:
        return _joint(edge, sender, receiver, carries, choice)
    if choice.graft is not None:
        return _graft(sender, receiver, carries, choice)
    return _fuse(edge, sender, receiver, choice)


def _carries(edge: Caching, sender: Peer) -> Carries:
    """The part of the sender's cache that a graft takes; by default what the sender's turn produces.

    An agent that only reads transfers its whole prompt, its own text included. `both` transfers the cache of the text
    it sends.
    """
    if sender.reads_only:
        return "all"
    return "reply" if edge.carries is None or isinstance(edge, BothEdge) else edge.carries


def _measured_as(carries: Carries) -> Carries:
    """The part of the cache that a card's evidence must cover: an agent that only reads transfers its prompt."""
    return "prompt" if carries == "all" else carries


def _same_model(sender: Peer, receiver: Peer) -> bool:
    if sender.identity is not None and receiver.identity is not None:
        return sender.identity == receiver.identity
    if sender.source is not None and receiver.source is not None:
        return sender.source == receiver.source
    return sender.name == receiver.name


def _reads_the_same(sender: Peer, receiver: Peer) -> bool:
    """Whether the receiver's prompt always contains everything that the sender's reply could derive from."""
    return bool(sender.reads) and sender.reads <= receiver.holds - {sender.agent}


def _grafts_something(sender: Peer, receiver: Peer, carries: Carries) -> bool:
    produces = sender.own_words if sender.reads_only else carries != "prompt"
    return produces or not sender.reads <= receiver.holds - {sender.agent}


def _graft(sender: Peer, receiver: Peer, carries: Carries, choice: FuserChoice | None) -> Decision:
    if not _grafts_something(sender, receiver, carries):
        return Decision("text", nothing_private(sender.agent, receiver.agent))
    return Decision("graft", carries=carries, choice=choice)


def _fuse(edge: Caching, sender: Peer, receiver: Peer, choice: FuserChoice) -> Decision:
    """Decide for a fuser. It corrects what both agents read, so text that only the sender knows would be lost."""
    if isinstance(edge, BothEdge) or edge.carries == "prompt" or _reads_the_same(sender, receiver):
        return Decision("fuse", choice=choice)
    only = sorted(sender.reads - receiver.holds - {sender.agent})
    what = f"reads {', '.join(map(repr, only))}" if only else "reads nothing that the receiver reads"
    if edge.carries is not None and not sender.reads_only:
        what = f"is to hand over its reply (`carries: {edge.carries}`)"
    return Decision(
        "text",
        f"the fuser {choice.name!r} corrects only what both agents read, and {sender.agent!r} {what}; name a "
        f"translator, use `channel: both`, or write `carries: prompt` if its reading of the shared text is enough",
    )


def _joint(edge: Caching, sender: Peer, receiver: Peer, carries: Carries, choice: FuserChoice) -> Decision:
    """Decide for a fuser and a translator; use one alone if there is nothing for the other."""
    if not _grafts_something(sender, receiver, carries):
        return Decision("fuse", choice=FuserChoice(choice.name, choice.why, fuse=choice.fuse))
    card = choice.fuse_card
    if card is not None and card.reads == "own-prompt" and not sender.reads & receiver.reads:
        return _graft(sender, receiver, carries, FuserChoice(choice.name, choice.why, graft=choice.graft))
    return Decision("joint", carries=carries, choice=choice)


def expected_route(edge: EdgeSpec, sender: Peer, receiver: Peer, folder: Path, fusers: Sequence[str] = ()) -> Route:
    """Predict the route of an edge without loading models. It may still fall back if they turn out not to fit."""
    return as_route(edge, decide_edge(edge, sender, receiver, folder, fusers, fetch=False))


def as_route(edge: EdgeSpec, decision: Decision) -> Route:
    """Convert a decision to a route whose networks are not loaded yet."""
    if decision.form == "text":
        return Route(edge, "text", fallback_reason=decision.reason)
    both, grafts = isinstance(edge, BothEdge), decision.form != "fuse"
    card = decision.choice.fuse_card if decision.choice is not None else None
    return Route(
        edge,
        used="both" if both else "cache",
        needs_text=both or (grafts and decision.sender_must_write),
        needs_cache=grafts or (card is not None and card.reads == "own-prompt"),
        carries=decision.carries if grafts else None,
        fuser=decision.choice.name if decision.choice is not None else None,
        fuser_reason=decision.choice.why if decision.choice is not None else None,
    )


def fall_back(edge: EdgeSpec, reason: str) -> Route:
    """Route the edge over text for this reason. Raises ChannelError if the recipe forbids it."""
    if not isinstance(edge, TextEdge | AutoEdge) and edge.fallback == "error":
        raise ChannelError(f"the {edge.channel} edge {edge.sender!r} -> {edge.receiver!r} can't work: {reason}")
    return Route(edge, "text", fallback_reason=reason)
