"""Closed-form start of a bottleneck fuser: ridge regression from the sharer's cache to the reply's embedding.

If the sharer has understood a prompt, its cache determines the reply, and a linear map can find it:
W = (X'X + lambda n I)^-1 X'Y, with X the sharer's cache at the last shared positions, keys unrotated, features of
variance 1, and Y the receiver's output embedding of the right reply's first token. W becomes the bottleneck's first
layer, so training begins with features in which a word of the sharer's languages stands where the receiver keeps its
own word for it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cachegraph.channels.cache.shared_prompt import SharedPrompt
from cachegraph.channels.fusers.networks.translator import TranslatorNetwork
from cachegraph.engine.model.load import LoadedModel
from cachegraph.errors import InputError

from ..data.examples import Replies
from ..spec import ReplyRidgeSpec
from .learner import ReportPhase
from .prompt_caches import PromptCaches

__all__ = ["fit_bottleneck"]

AT_ONCE = 256  # prompts
MEASURED = 1024  # prompts whose positions give the features' mean and deviation
_SMALLEST = 1e-3


def fit_bottleneck(
    caches: PromptCaches,
    network: TranslatorNetwork,
    receiver: LoadedModel,
    shared_prompts: Sequence[SharedPrompt],
    replies: Sequence[Replies],
    ridge: ReplyRidgeSpec | None,
    report: ReportPhase,
) -> None:
    """Normalise inputs and outputs, and fit the first layer if `ridge` is given.

    Raises InputError if the system can't be solved.
    """
    some = shared_prompts[:: max(len(shared_prompts) // MEASURED, 1)]
    x = torch.cat([part.float() for part in caches.features(some)])
    mean, deviation = x.mean(0), x.std(0).clamp_min(_SMALLEST)
    del x
    with torch.no_grad():
        network.mean.copy_(mean)
        network.deviation.copy_(deviation)
        network.scale.copy_(caches.sizes(some))
        if ridge is None:
            return
        weights, middle = _solve(caches, network, receiver, shared_prompts, replies, ridge, report)
        found = weights.shape[1]  # of a bottleneck that is wider than the embedding, the rest stays random
        network.down.weight[:found] = weights.T
        network.down.bias[:found] = -(middle @ weights)


def _solve(
    caches: PromptCaches,
    network: TranslatorNetwork,
    receiver: LoadedModel,
    shared_prompts: Sequence[SharedPrompt],
    replies: Sequence[Replies],
    ridge: ReplyRidgeSpec,
    report: ReportPhase,
) -> tuple[Tensor, Tensor]:
    """(features, targets) weights whose fitted values have a variance of 1, and the features' mean, (features,)."""
    goals = receiver.network.get_output_embeddings().weight.float()
    goals = goals - goals.mean(0)
    inputs = len(network.mean)
    gram, cross = torch.zeros(inputs, inputs), torch.zeros(inputs, goals.shape[1])
    total, goal, count = torch.zeros(inputs), torch.zeros(goals.shape[1]), 0
    for start in range(0, len(shared_prompts), AT_ONCE):
        report("ridge: reading", start, len(shared_prompts))
        part = slice(start, start + AT_ONCE)
        parts = [features[-ridge.positions :].float() for features in caches.features(shared_prompts[part])]
        words = torch.tensor([reply.ids[reply.right][0] for reply in replies[part]])
        y = goals[words.to(goals.device)].cpu().repeat_interleave(torch.tensor(list(map(len, parts))), dim=0)
        x = (torch.cat(parts) - network.mean) / network.deviation
        gram += x.T @ x
        cross += x.T @ y
        total, goal, count = total + x.sum(0), goal + y.sum(0), count + len(x)
    report("ridge: solving", 0, 1)
    middle, goal = total / count, goal / count
    gram -= count * torch.outer(middle, middle)
    cross -= count * torch.outer(middle, goal)
    gram.diagonal().add_(ridge.penalty * count)
    try:
        factor = torch.linalg.cholesky(gram)
    except RuntimeError as error:
        raise InputError(f"the ridge start can't be solved with a penalty of {ridge.penalty}; raise it") from error
    weights = torch.cholesky_solve(cross, factor)  # (features, targets)
    rank = len(network.down.bias)
    if rank < weights.shape[1]:  # reduced-rank regression, as in ridge.py
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            weights = weights @ torch.svd_lowrank(factor.T @ weights, q=rank, niter=2)[2]
    squares = (factor.T @ weights).square().sum() - ridge.penalty * count * weights.square().sum()
    report("ridge: solving", 1, 1)
    return weights / (squares / (count * weights.shape[1])).sqrt().clamp_min(_SMALLEST), middle
