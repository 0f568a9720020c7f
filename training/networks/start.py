"""Start a translator from the weights of a trained one, which may read more of the sharer's layers.

If it does, the first layer is fitted in closed form: ridge regression from the layers that are left to the trained
one's bottleneck, on texts of the training. Everything behind the bottleneck is copied.
"""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cachegraph.channels.fusers.networks.translator import Translator
from cachegraph.engine.model.load import LoadedModel
from cachegraph.errors import InputError

from ..data.examples import GraftExample, PrivateText
from ..prefill import prefill
from ..spec import RidgeSpec
from .ridge import ROWS_AT_ONCE, solve_ridge

if TYPE_CHECKING:
    from .learner import ReportPhase

__all__ = ["start_from"]


def start_from(
    translator: Translator,
    start: Translator,
    sharer: LoadedModel,
    examples: Sequence[GraftExample],
    spec: RidgeSpec,
    seed: int,
    report: "ReportPhase",
) -> None:
    """Copy the weights of `start`, whose layers include the translator's. Raises InputError if there is too little text
    to fit the first layer."""
    network, trained = translator.network, start.network
    if translator.card.sharer_layers == start.card.sharer_layers:
        network.load_state_dict(trained.state_dict())
        return
    state = {name: tensor for name, tensor in trained.state_dict().items() if not name.startswith("down.")}
    columns = _columns(translator, start)
    for name in ("mean", "deviation"):
        state[name] = state[name][columns]
    network.load_state_dict(state, strict=False)
    x, z = _collect(translator, start, sharer, [example.text for example in examples], spec.tokens, seed, report)
    if len(x) <= network.down.out_features:
        raise InputError(
            f"the start has {len(x)} tokens of text for a bottleneck of {network.down.out_features}; give more texts, "
            "or a start that reads the same layers"
        )
    report("start: solving", 0, 1)
    weights, bias = _fit(x, z, network.mean.cpu(), network.deviation.cpu(), spec.penalty)
    with torch.no_grad():
        network.down.weight.copy_(weights.T)
        network.down.bias.copy_(bias)
    report("start: solving", 1, 1)


def _fit(x: Tensor, z: Tensor, mean: Tensor, deviation: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """(features, rank) weights and (rank,) bias of the ridge regression from standardised `x` to `z`."""
    middle = z.mean(0)
    gram, cross = torch.zeros(x.shape[1], x.shape[1]), torch.zeros(x.shape[1], z.shape[1])
    for start in range(0, len(x), ROWS_AT_ONCE):
        features = (x[start : start + ROWS_AT_ONCE].float() - mean) / deviation
        gram += features.T @ features
        cross += features.T @ (z[start : start + ROWS_AT_ONCE] - middle)
    return solve_ridge(gram, cross, penalty, len(x))[0], middle


def _columns(translator: Translator, start: Translator) -> Tensor:
    """The indices of the translator's inputs among those of `start`."""
    geometry, found, at = translator.card.sharer.geometry, [], 0
    for layer in start.card.sharer_layers:
        width = geometry.shape(layer).width
        if layer in translator.card.sharer_layers:
            found.append(torch.arange(at, at + width))
        at += width
    return torch.cat(found)


@torch.no_grad()
def _collect(
    translator: Translator,
    start: Translator,
    sharer: LoadedModel,
    texts: Sequence[PrivateText],
    tokens: int,
    seed: int,
    report: "ReportPhase",
) -> tuple[Tensor, Tensor]:
    """(tokens, features) of the translator and (tokens, rank) of the start's bottleneck, of texts in random order."""
    order = list(dict.fromkeys(texts))
    Random(seed).shuffle(order)  # noqa: S311
    network, xs, zs, count = start.network, [], [], 0
    for text in order:
        (kv,) = prefill(sharer, [text.ids], layers=start.sharer_depth)
        layers = sharer.rotation.unrotated(kv.select(torch.tensor(text.private))).layers
        xs.append(translator.read(layers).cpu())
        features = start.read(layers).to(network.down.weight)
        zs.append(network.down((features - network.mean) / network.deviation).float().cpu())
        count += len(xs[-1])
        report("start: reading", min(count, tokens), tokens)
        if count >= tokens:
            break
    return torch.cat(xs), torch.cat(zs)
