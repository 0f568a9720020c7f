"""Make the Route of an edge: load its networks and check them against both models, or fall back to text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cachegraph.engine.engine import Engine
from cachegraph.engine.kernels import backend
from cachegraph.engine.model.load import LoadedModel
from cachegraph.errors import ConfigError, FuserError

from .cache.align import Aligner
from .cache.edge_plan import FusePlan, GraftPlan, JointPlan
from .cache.graft import why_no_graft
from .cache.translate import Translation
from .choose_channel import Caching, Decision, as_route, decide_edge, fall_back
from .fusers.files.card import Alignment, Card, Geometry
from .fusers.files.load import load_fuser, load_translator
from .fusers.fuser_folder import check_pair
from .payload import Route
from .peer import Peer, SharerEngine
from .spec import EdgeSpec, TextEdge

__all__ = ["route", "why_not_aligned"]

_SAME_TOKENS = 0.99  # least part of the receiver's vocabulary whose ids the sharer shares, for alignment `ids`


def route(edge: EdgeSpec, sender: Peer, receiver: Peer, folder: Path, fusers: Sequence[str] = ()) -> Route:
    """Decide an edge and load its networks. `folder` is the recipe's, `fusers` its defaults.

    Raises ChannelError if a cache can't travel and the recipe forbids text.
    """
    decision = decide_edge(edge, sender, receiver, folder, fusers)
    if isinstance(edge, TextEdge):
        return Route(edge, "text")
    if decision.form == "text":
        return fall_back(edge, decision.reason or "no cache can travel")
    plan = _plan(edge, sender, receiver, decision)
    if isinstance(plan, str):
        return fall_back(edge, plan)
    depth, all_layers = plan.cache_layers, sender.engine.model.info.layers if sender.engine is not None else None
    layers = None if depth == all_layers else depth
    return replace(as_route(edge, decision), plan=plan, cache_layers=layers, cards=plan.cards)


def _plan(edge: Caching, sender: Peer, receiver: Peer, decision: Decision) -> GraftPlan | FusePlan | JointPlan | str:
    """Load the edge's networks and check them against both models; returns the reason if the edge can't use them."""
    choice, carries = decision.choice, decision.carries
    sharer, engine = sender.sharer, receiver.engine
    assert sharer is not None
    assert engine is not None
    try:
        if choice is None:
            assert carries is not None
            return why_no_graft(sharer.model, engine.model) or GraftPlan(carries)
        fuse = None if choice.fuse is None else _fuse_plan(edge, sharer, engine, choice.fuse)
        if choice.graft is None or isinstance(fuse, str):
            return fuse or "it has no fuser"
        assert carries is not None
        translation = _translation(sharer, engine, choice.graft)
    except (FuserError, ConfigError) as error:
        return str(error)
    if isinstance(translation, str):
        return translation
    graft = GraftPlan(carries, translation)
    return graft if fuse is None else JointPlan(graft, fuse)


def _translation(sharer: SharerEngine, receiver: Engine, place: Path) -> Translation | str:
    """Load a translator; returns the reason if it does not fit. Raises FuserError if the folder is damaged."""
    receiver_model, sharer_model = receiver.model, sharer.model
    if receiver_model.info.states:
        return f"{receiver_model.name!r} keeps a recurrent state beside its KV cache, and no translator makes one"
    translator = load_translator(place, receiver_model.device, receiver_model.dtype)
    backend("cpu").widen_linears(translator.network)
    if reason := _why_not_this_pair(translator.card, receiver, sharer):
        return reason
    if reason := _why_not_unrotated(sharer_model, receiver_model):
        return reason
    assert receiver_model.tokenizer is not None
    assert sharer_model.tokenizer is not None
    return Translation(
        translator, sharer_model, Aligner(sharer_model.tokenizer.raw, receiver_model.tokenizer.words_only)
    )


def _why_not_unrotated(*models: LoadedModel) -> str | None:
    bad = next((model for model in models if model.rotation.why_not is not None), None)
    return None if bad is None else f"the keys of {bad.name!r} can't be unrotated: {bad.rotation.why_not}"


def _why_not_this_pair(card: Card, receiver: Engine, sharer: SharerEngine) -> str | None:
    receiver_geometry, sharer_geometry = (
        Geometry(model.info.layers, model.info.kv_heads, model.info.head_dim)
        for model in (receiver.model, sharer.model)
    )
    return check_pair(card, receiver_geometry, sharer_geometry, receiver.model.identity, sharer.model.identity)


def _fuse_plan(edge: Caching, sharer: SharerEngine, receiver: Engine, place: Path) -> FusePlan | str:
    """Load a fuser; returns the reason if it does not fit. Raises FuserError if the folder is damaged."""
    fuser = load_fuser(place, receiver.model.device, receiver.model.dtype).freeze()
    backend("cpu").widen_linears(fuser.module)
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
        receiver_tokenizer, sharer_tokenizer = receiver.model.tokenizer, sharer.model.tokenizer
        assert receiver_tokenizer is not None
        assert sharer_tokenizer is not None
        aligner = Aligner(
            receiver_tokenizer.raw, sharer_tokenizer.words_only, "longest" if alignment == "longest" else "first"
        )
    return FusePlan(sharer, fuser, alignment, card.reads, edge.include_response, aligner)


def why_not_aligned(alignment: Alignment, receiver: LoadedModel, sharer: LoadedModel) -> str | None:
    """Why this alignment can't pair the tokens of the two models; None if it can."""
    if receiver.tokenizer is None or sharer.tokenizer is None:
        return f"{(receiver if receiver.tokenizer is None else sharer).name!r} has no tokenizer"
    if alignment == "ids":
        receiver_vocab, sharer_vocab = receiver.tokenizer.raw.get_vocab(), sharer.tokenizer.raw.get_vocab()
        same = sum(sharer_vocab.get(token) == id_ for token, id_ in receiver_vocab.items())
        if same < _SAME_TOKENS * len(receiver_vocab) or receiver.info.vocab_size > sharer.info.vocab_size:
            return (
                f"the fuser needs both models to read the same token ids, but {receiver.name!r} and {sharer.name!r} "
                "have different tokenizers"
            )
    return None
