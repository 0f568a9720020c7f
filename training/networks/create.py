"""Create the learner of a training recipe for two loaded models."""

from pathlib import Path
from typing import Any

import psutil
import torch

from cachegraph.channels.cache.align import Aligner
from cachegraph.channels.cache.prefix import why_no_prefix
from cachegraph.channels.fusers.files.card import Geometry, ModelEnd
from cachegraph.channels.fusers.files.load import load_translator
from cachegraph.channels.fusers.fuser_folder import check_pair, find_fuser
from cachegraph.channels.fusers.layer_map import LAYER_MAPS
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.bottleneck import new_bottleneck
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.channels.fusers.networks.prefix import entry_width, new_prefix
from cachegraph.channels.fusers.networks.translator import Translator, bottleneck_params, new_translator
from cachegraph.channels.load_route import why_not_aligned
from cachegraph.engine.model.load import LoadedModel
from cachegraph.errors import ConfigError

from ..pair import Pair
from ..spec import FuseSpec, GraftSpec, JointSpec, TrainSpec
from .fuse import FuseLearner
from .graft import GraftLearner
from .joint import JointLearner
from .learner import Learner
from .prefix import PrefixLearner

__all__ = ["new_learner"]

CACHE_SHARE = 0.25  # of free memory, for one model's prefilled prompts


def new_learner(spec: TrainSpec, pair: Pair, base: Path) -> "Learner[object]":
    """The learner of a recipe in folder `base`. Raises ConfigError or FuserError if it doesn't fit the models."""
    if spec.control == "tuned":
        return _prefix_learner(spec, pair, base)  # type: ignore[return-value]
    wanted = spec.fuser
    if isinstance(wanted, JointSpec):
        fuse = _fuse_learner(spec, wanted.fuse, pair)
        return JointLearner(pair, fuse, _graft_learner(spec, wanted.graft, pair, base))  # type: ignore[return-value]
    if isinstance(wanted, GraftSpec):
        return _graft_learner(spec, wanted, pair, base)  # type: ignore[return-value]
    return _fuse_learner(spec, wanted, pair)  # type: ignore[return-value]


def _prefix_learner(spec: TrainSpec, pair: Pair, base: Path) -> PrefixLearner:
    """A prefix of about as many parameters as the recipe's own network."""
    network = new_learner(spec.model_copy(update={"control": "none"}), pair, base).module
    receiver = model_end(pair.receiver.engine.model)
    if reason := why_no_prefix(pair.receiver.engine.model):
        raise ConfigError(f"{receiver.name!r} can't have a trained prefix: {reason}")
    positions = max(round(sum(p.numel() for p in network.parameters()) / entry_width(receiver.geometry)), 1)
    if positions >= (most := pair.receiver.engine.model.info.max_positions):
        raise ConfigError(
            f"a prefix of as many parameters as the recipe's network has {positions} positions, but {receiver.name!r} "
            f"reads at most {most}; make the network smaller"
        )
    return PrefixLearner(pair, new_prefix(receiver, positions), seed=spec.seed)


def _graft_learner(spec: TrainSpec, wanted: GraftSpec, pair: Pair, base: Path) -> GraftLearner:
    receiver, sharer = pair.receiver.engine.model, pair.sharer.engine.model
    for model in (receiver, sharer):
        _check_rotation(model)
    translator = new_translator(
        model_end(receiver),
        model_end(sharer),
        sharer_layers=None if wanted.layers == "all" else wanted.layers,
        seed=spec.seed,
        rank=wanted.rank,
        hidden=wanted.hidden,
    )
    start = None if wanted.start is None else _load_start(translator, find_fuser(wanted.start, base), wanted.start)
    return GraftLearner(
        pair,
        translator,
        zero=spec.control == "zero",
        ridge=wanted.ridge,
        cache_bytes=_cache_bytes(),
        seed=spec.seed,
        start=start,
    )


def _load_start(translator: Translator, folder: Path, name: str) -> Translator:
    """Load a translator to start from. Raises ConfigError if its pair or sizes differ, or it lacks layers."""
    start = load_translator(folder, dtype=torch.float32)
    card, start_card = translator.card, start.card
    geometries, identities = zip(*((end.geometry, end.identity) for end in (card.receiver, card.sharer)), strict=True)
    reason = check_pair(start_card, *geometries, *identities)
    if reason is None and bottleneck_params(card) != bottleneck_params(start_card):
        reason = f"its sizes are {dict(start_card.params)}; give the recipe the same ones"
    if reason is None and (lacking := sorted(set(card.sharer_layers) - set(start_card.sharer_layers))):
        reason = f"it does not read the sharer's layers {lacking}; leave them out"
    if reason is not None:
        raise ConfigError(f"the training can't start from {name!r}: {reason}")
    return start


def _fuse_learner(spec: TrainSpec, wanted: FuseSpec, pair: Pair) -> FuseLearner:
    receiver, sharer = pair.receiver.engine.model, pair.sharer.engine.model
    ends = model_end(receiver), model_end(sharer)
    rope = wanted.rope if wanted.rope != "auto" else "rotated" if wanted.architecture == "c2c" else "unrotated"
    if rope == "unrotated":
        for model in (receiver, sharer):
            _check_rotation(model)
    if reason := why_not_aligned(wanted.alignment, receiver, sharer):
        raise ConfigError(f"{reason}; choose another alignment")
    fuser = _new_fuser(spec, wanted, ends, rope)
    aligner = None
    if wanted.alignment in ("first", "longest"):
        assert receiver.tokenizer is not None
        assert sharer.tokenizer is not None
        aligner = Aligner(receiver.tokenizer.raw, sharer.tokenizer.words_only, wanted.alignment)
    zero = spec.control == "zero"
    return FuseLearner(pair, fuser, aligner, zero=zero, ridge=wanted.ridge, cache_bytes=_cache_bytes())


def _new_fuser(spec: TrainSpec, wanted: FuseSpec, ends: tuple[ModelEnd, ModelEnd], rope: str) -> Fuser:
    receiver, sharer = ends
    card: dict[str, Any] = {
        "receiver": receiver,
        "sharer": sharer,
        "alignment": wanted.alignment,
        "reads": wanted.reads,
        "rope": rope,
    }
    if wanted.architecture == "bottleneck":
        layers = tuple(range(_depth(wanted, sharer)))
        return new_bottleneck({**card, "sharer_layers": layers, "params": wanted.params}, seed=spec.seed)
    params: dict[str, Any] = {"anneal_steps": wanted.anneal_steps or spec.optim.steps, **wanted.params}
    return new_fuser(
        wanted.architecture,
        receiver.geometry,
        sharer.geometry,
        layer_map=LAYER_MAPS[wanted.layer_map](receiver.geometry.layers, _depth(wanted, sharer)),
        seed=spec.seed,
        card=card,
        **params,
    )


def _depth(wanted: FuseSpec, sharer: ModelEnd) -> int:
    """The number of the sharer's first layers that are read."""
    layers = sharer.geometry.layers
    depth = wanted.sharer_depth or layers
    if depth > layers:
        raise ConfigError(f"sharer_depth is {depth}, but {sharer.name!r} has {layers} layers; set it to no more")
    return depth


def _cache_bytes() -> int:
    """Bytes for one model's prefilled prompts."""
    return int(psutil.virtual_memory().available * CACHE_SHARE)


def model_end(model: LoadedModel) -> ModelEnd:
    """A model as one end of a fuser's card."""
    info = model.info
    geometry = Geometry(info.layers, info.kv_heads, info.head_dim)
    return ModelEnd(name=model.name, identity=model.identity, geometry=geometry, vocab=info.vocab_size)


def _check_rotation(model: LoadedModel) -> None:
    if model.rotation.why_not is not None:
        raise ConfigError(f"the keys of {model.name!r} can't be unrotated: {model.rotation.why_not}")
