"""Select the fuser of an edge by the edge, the recipe, or the evidence on a fuser's card. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cachegraph.errors import FuserError

from ..peer import Peer
from ..spec import FuserPair
from .files.card import CARD, Card, Carries, EdgeTask, ModelEnd, read_card
from .files.joint_folder import fuser_parts, is_pair
from .fuser_folder import find_fuser, on_shelf, shelves
from .hub.hub_name import is_hub_fuser, parse_hub_fuser
from .hub.pull import find_cached_fuser

__all__ = ["FuserChoice", "NoFuser", "select_fuser"]


class NoFuser(Exception):
    """No fuser was selected for this edge. The message is the reason, as a clause."""


@dataclass(frozen=True)
class FuserChoice:
    """The networks of an edge: one that fuses, one that translates for grafts, or both. `why`: who selected them."""

    name: str
    why: str
    fuse: Path | None = None
    graft: Path | None = None

    @property
    def fuse_card(self) -> Card | None:
        """The card of the fusing network; None for a published folder, which has no card."""
        return read_card(self.fuse) if self.fuse is not None and (self.fuse / CARD).is_file() else None


def select_fuser(
    named: str | FuserPair | None,
    defaults: Sequence[str],
    sharer: Peer,
    receiver: Peer,
    tasks: Sequence[EdgeTask],
    folder: Path,
    *,
    carries: Carries | None = None,
    fetch: bool = True,
) -> FuserChoice:
    """Select the fuser for an edge of a recipe in `folder`.

    The edge's own fuser comes first, then the first of the recipe's `fusers` that joins this pair and serves one of
    `tasks`, then one whose card shows communication on a task, in the order of `tasks`. Fitting the pair is not enough,
    nor is a fuser for certain prompts only. `carries` is the part of the sender's cache that a graft takes. If `fetch`
    is false, a fuser of the hub that is not on this disk raises NoFuser.

    Raises NoFuser, or FuserError if a named fuser is missing or damaged.
    """
    if named is not None:
        return _named(named, folder, fetch)
    for name in defaults:
        choice = _opened(_find(name, folder, fetch), name, "the recipe's `fusers` name it")
        if _does(choice, tasks) and _fits(choice, sharer, receiver):
            return choice
    return _shown(sharer, receiver, tasks, carries, folder)


def _named(named: str | FuserPair, folder: Path, fetch: bool) -> FuserChoice:
    why = "the edge names it"
    if isinstance(named, str):
        return _opened(_find(named, folder, fetch), named, why)
    fuse, graft = _find(named.fuse, folder, fetch), _find(named.graft, folder, fetch)
    if _is_translator(fuse) or not _is_translator(graft):
        raise FuserError(
            f"{named.fuse!r} must be a fuser and {named.graft!r} a translator, and they are not; see "
            "which is which with: cachegraph fusers list"
        )
    return FuserChoice(f"{named.fuse}, {named.graft}", why, fuse, graft)


def _find(name: str, folder: Path, fetch: bool) -> Path:
    if is_hub_fuser(name) and not fetch:
        wanted = parse_hub_fuser(name)
        cached = None if wanted is None else find_cached_fuser(wanted)
        if cached is None:
            raise NoFuser(f"the fuser {name!r} is not on this disk yet")
        return cached
    return find_fuser(name, folder)


def _opened(place: Path, name: str, why: str) -> FuserChoice:
    if is_pair(place):
        return FuserChoice(name, why, place / "fuse", place / "graft")
    return FuserChoice(name, why, graft=place) if _is_translator(place) else FuserChoice(name, why, fuse=place)


def _is_translator(place: Path) -> bool:
    return (place / CARD).is_file() and read_card(place).kind == "graft"


def _fits(choice: FuserChoice, sharer: Peer, receiver: Peer) -> bool:
    """Whether the card names this pair. A published folder has no card; the recipe vouches for it."""
    parts = [part for part in (choice.fuse, choice.graft) if part is not None and (part / CARD).is_file()]
    return all(_joins(read_card(part), sharer, receiver) for part in parts)


def _joins(card: Card, sharer: Peer, receiver: Peer) -> bool:
    return _is_end(card.sharer, sharer) and _is_end(card.receiver, receiver)


def _is_end(end: ModelEnd, peer: Peer) -> bool:
    if end.identity is not None and peer.identity is not None:
        return end.identity == peer.identity
    return end.name == peer.name


def _does(choice: FuserChoice, tasks: Sequence[EdgeTask]) -> bool:
    return (choice.graft is not None and "private" in tasks) or (choice.fuse is not None and "shared" in tasks)


def _shown(
    sharer: Peer, receiver: Peer, tasks: Sequence[EdgeTask], carries: Carries | None, folder: Path
) -> FuserChoice:
    """Select the fuser of the pair whose card shows the strongest evidence. Raises NoFuser."""
    cards = list(_cards(sharer, receiver, folder))
    for task in tasks:
        kind = "graft" if task == "private" else "fuse"
        shown = [
            (evidence.low, name, place, evidence)
            for place, name, card in cards
            if card.kind == kind and not card.scope and (evidence := card.communication(task, carries)) is not None
        ]
        if shown:
            _, name, place, evidence = max(shown, key=lambda candidate: candidate[:2])
            return FuserChoice(name, f"its card shows communication: {evidence}", **{kind: place})
    models = f"{sharer.name!r} and {receiver.name!r} are different models, and "
    if not cards:
        raise NoFuser(f"{models}there is no fuser for the pair")
    general = [name for _, name, card in cards if not card.scope]
    if not general:
        raise NoFuser(f"{models}{cards[0][1]!r} is for certain prompts only; name it on the edge to use it")
    names = " and of ".join(map(repr, general[:3]))
    reply = f"the reply of {sharer.agent!r}" if carries == "reply" else f"what only {sharer.agent!r} has"
    texts = {"private": reply, "shared": "what both agents read"}
    wanted = " or of ".join(texts[task] for task in tasks)
    raise NoFuser(
        f"{models}the card of {names} shows no communication of {wanted}; name a fuser on the edge to use it anyway"
    )


def _cards(sharer: Peer, receiver: Peer, folder: Path) -> Iterator[tuple[Path, str, Card]]:
    """Yield every fuser of the pair on this disk: those named after it beside the recipe, then those on the shelves."""
    prefix = f"{receiver.name}--{sharer.name}"
    beside = [(folder, place) for place in on_shelf(folder) if place.name.startswith(prefix)] if folder.is_dir() else []
    places = [*beside, *((shelf, place) for shelf in shelves() for place in on_shelf(shelf))]
    names: set[str] = set()
    for shelf, place in places:
        for part in fuser_parts(place):
            name = str(part.relative_to(shelf))
            if name in names or not (part / CARD).is_file():
                continue
            try:
                card = read_card(part)
            except FuserError:
                continue  # `fusers list` reports the damage
            if _joins(card, sharer, receiver):
                names.add(name)
                yield part, name, card
