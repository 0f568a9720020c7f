"""From an edge of a recipe and its two ends to a route: what can travel there, or why it can't."""

from pathlib import Path
from typing import Literal, NamedTuple, assert_never

from cachegraph.engine.cpu.linear import widen
from cachegraph.engine.engine import Engine
from cachegraph.engine.load import LoadedModel
from cachegraph.errors import ChannelError, ConfigError, FuserError

from .base import Peer
from .cache.align import Aligner
from .cache.graft import why_no_graft
from .cache.plans import FusePlan, GraftPlan, JointPlan
from .cache.translate import Translation
from .fusers.card import Alignment, Card, Geometry
from .fusers.find import check_pair, find_fuser
from .fusers.load import is_translator, load_fuser, load_translator
from .fusers.pair import is_pair
from .message import Route
from .spec import AutoEdge, BothEdge, CacheEdge, EdgeSpec, FuserPair, TextEdge

__all__ = ["fall_back", "nothing_private", "route", "why_not_aligned"]

_SAME_TOKENS = 0.99  # of the receiver's vocabulary must mean the same to the sharer where both read the same ids


class _Both(NamedTuple):
    """The folders of an edge's two networks."""

    fuse: Path
    graft: Path


def route(edge: EdgeSpec, sender: Peer, receiver: Peer, folder: Path) -> Route:
    """Decide an edge. `folder` is the recipe's. Raises ChannelError where a cache can't travel and text may not."""
    match edge:
        case TextEdge():
            return Route(edge, "text")
        case CacheEdge() | BothEdge() | AutoEdge():
            plan = _plan(edge, sender, receiver, folder)
        case _:
            assert_never(edge)
    if isinstance(plan, str):
        return fall_back(edge, plan)
    both = isinstance(edge, BothEdge)
    graft = plan.graft if isinstance(plan, JointPlan) else plan if isinstance(plan, GraftPlan) else None
    return Route(
        edge,
        used="both" if both else "cache",
        needs_text=both or (graft is not None and graft.carries != "prompt"),
        needs_cache=graft is not None or (isinstance(plan, FusePlan) and plan.reads == "own-prompt"),
        plan=plan,
    )


def fall_back(edge: EdgeSpec, reason: str) -> Route:
    """Text, with the reason; or the error that the recipe prefers."""
    if not isinstance(edge, TextEdge | AutoEdge) and edge.fallback == "error":
        raise ChannelError(f"the {edge.channel} edge {edge.sender!r} -> {edge.receiver!r} can't work: {reason}")
    return Route(edge, "text", fallback_reason=reason)


def nothing_private(sender: str, receiver: str) -> str:
    """Why there is nothing to graft."""
    return (
        f"agent {receiver!r} itself reads all that {sender!r} has read, so there is nothing to graft; "
        "`carries: reply` grafts what it wrote"
    )


def _plan(
    edge: CacheEdge | BothEdge | AutoEdge, sender: Peer, receiver: Peer, folder: Path
) -> GraftPlan | FusePlan | JointPlan | str:
    """What the edge will do, or why it can't."""
    if reason := sender.why_no_cache or receiver.why_none_in or receiver.why_no_cache:
        return reason
    if receiver.reads_only:
        return f"agent {receiver.agent!r} writes nothing: it hands over its prompt, so it needs the words"
    try:
        place = _place(edge, sender, receiver, folder)
        if isinstance(place, _Both):
            return _joint_plan(edge, sender, receiver, place)
        if place is None:
            reason = why_no_graft(sender.model.model, receiver.model.model)
            return reason or _graft_plan(edge, sender, receiver, None)
        if is_translator(place):
            return _translate_plan(edge, sender, receiver, place)
        return _fuse_plan(edge, sender.model, receiver.model, place)
    except (FuserError, ConfigError) as error:
        return str(error)


def _joint_plan(
    edge: CacheEdge | BothEdge | AutoEdge, sender: Peer, receiver: Peer, places: _Both
) -> GraftPlan | FusePlan | JointPlan | str:
    """Both networks at work; one alone where there can be nothing for the other."""
    fuse = _fuse_plan(edge, sender.model, receiver.model, places.fuse)
    if isinstance(fuse, str) or not _grafts_something(edge, sender, receiver):
        return fuse
    graft = _translate_plan(edge, sender, receiver, places.graft)
    if isinstance(graft, str) or (fuse.reads == "own-prompt" and not sender.reads & receiver.reads):
        return graft
    return JointPlan(graft, fuse)


def _graft_plan(
    edge: CacheEdge | BothEdge | AutoEdge, sender: Peer, receiver: Peer, translation: Translation | None
) -> GraftPlan | str:
    if not _grafts_something(edge, sender, receiver):
        return nothing_private(sender.agent, receiver.agent)
    return GraftPlan(_carries(edge, sender), translation)


def _carries(edge: CacheEdge | BothEdge | AutoEdge, sender: Peer) -> Literal["prompt", "reply", "all"]:
    """`both` carries the cache of the text it hands over, which for an agent that only reads is its prompt."""
    return edge.carries if not isinstance(edge, BothEdge) else "prompt" if sender.reads_only else "reply"


def _grafts_something(edge: CacheEdge | BothEdge | AutoEdge, sender: Peer, receiver: Peer) -> bool:
    return _carries(edge, sender) != "prompt" or not sender.reads <= receiver.reads - {sender.agent}


def _translate_plan(
    edge: CacheEdge | BothEdge | AutoEdge, sender: Peer, receiver: Peer, place: Path
) -> GraftPlan | str:
    """Raises FuserError where the folder holds no whole translator."""
    mine, theirs = receiver.model.model, sender.model.model
    translator = load_translator(place, mine.device, mine.dtype)
    widen(translator.network)
    if reason := _why_not_this_pair(translator.card, receiver.model, sender.model):
        return reason
    if reason := _why_not_unrotated(theirs, mine):
        return reason
    assert mine.tokenizer is not None
    assert theirs.tokenizer is not None
    backwards = Aligner(theirs.tokenizer.raw, mine.tokenizer.words_only)
    return _graft_plan(edge, sender, receiver, Translation(translator, theirs, backwards))


def _place(edge: CacheEdge | BothEdge | AutoEdge, sender: Peer, receiver: Peer, folder: Path) -> Path | _Both | None:
    """The folder of the fuser that the recipe names; without a name, of one that is called after the pair; or None."""
    if isinstance(edge.fuser, FuserPair):
        fuse, graft = find_fuser(edge.fuser.fuse, folder), find_fuser(edge.fuser.graft, folder)
        if is_translator(fuse) or not is_translator(graft):
            raise FuserError(
                f"{edge.fuser.fuse!r} must be a fuser and {edge.fuser.graft!r} a translator, and they are not; see "
                "which is which with: cachegraph fusers list"
            )
        return _Both(fuse, graft)
    if edge.fuser is not None:
        return _parts(find_fuser(edge.fuser, folder))
    if sender.model.model.identity == receiver.model.model.identity:
        return None
    try:
        return _parts(find_fuser(f"{receiver.name}--{sender.name}", folder))
    except FuserError:
        return None


def _parts(place: Path) -> Path | _Both:
    return _Both(place / "fuse", place / "graft") if is_pair(place) else place


def _why_not_unrotated(*models: LoadedModel) -> str | None:
    bad = next((model for model in models if model.rotation.why_not is not None), None)
    return None if bad is None else f"the keys of {bad.name!r} can't be unrotated: {bad.rotation.why_not}"


def _why_not_this_pair(card: Card, receiver: Engine, sharer: Engine) -> str | None:
    mine, theirs = (
        Geometry(model.info.layers, model.info.kv_heads, model.info.head_dim)
        for model in (receiver.model, sharer.model)
    )
    return check_pair(card, mine, theirs, receiver.model.identity, sharer.model.identity)


def _fuse_plan(edge: CacheEdge | BothEdge | AutoEdge, sharer: Engine, receiver: Engine, place: Path) -> FusePlan | str:
    """Raises FuserError where the folder holds no whole fuser."""
    fuser = load_fuser(place, receiver.model.device, receiver.model.dtype).freeze()
    for projector in fuser.projectors.values():
        widen(projector)
    card = fuser.card
    if reason := _why_not_this_pair(card, receiver, sharer):
        return reason
    if card.rope == "unrotated" and (reason := _why_not_unrotated(sharer.model, receiver.model)):
        return reason
    alignment: Alignment = card.alignment if edge.align == "auto" else edge.align
    if reason := why_not_aligned(alignment, receiver.model, sharer.model):
        return reason
    aligner = None
    if alignment != "ids":
        here, there = receiver.model.tokenizer, sharer.model.tokenizer
        assert here is not None
        assert there is not None
        aligner = Aligner(here.raw, there.words_only, "longest" if alignment == "longest" else "first")
    return FusePlan(sharer, fuser, alignment, card.reads, edge.include_response, aligner)


def why_not_aligned(alignment: Alignment, receiver: LoadedModel, sharer: LoadedModel) -> str | None:
    """Why tokens can't be brought together in this way."""
    if receiver.tokenizer is None or sharer.tokenizer is None:
        return f"{(receiver if receiver.tokenizer is None else sharer).name!r} has no tokenizer"
    if alignment == "ids":
        mine, theirs = receiver.tokenizer.raw.get_vocab(), sharer.tokenizer.raw.get_vocab()
        same = sum(theirs.get(token) == id_ for token, id_ in mine.items())
        if same < _SAME_TOKENS * len(mine) or receiver.info.vocab_size > sharer.info.vocab_size:
            return (
                f"the fuser needs both models to read the same token ids, but {receiver.name!r} and {sharer.name!r} "
                "have different tokenizers"
            )
    return None
