"""Closed-form start of a translator: ridge regression from the sharer's cache of a text to the receiver's own.

Both models read the same texts; a sharer token is paired with the receiver token that covers its last character.
Keys are unrotated, features and targets scaled to variance 1: W = (X'X + lambda n I)^-1 X'Y, lambda 0.01
(arXiv 2608.03893).
The best map of the bottleneck's rank is the projection of W's fitted values onto their first right singular vectors
(reduced-rank regression). The bottleneck's features are scaled to variance 1, so that one learning rate fits all.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cachegraph.channels.fusers.networks.translator import TranslatorNetwork
from cachegraph.engine.kv.shapes import KVShape
from cachegraph.errors import InputError

from ..data.examples import GraftExample, PrivateText, text_pairs
from ..pair import End
from ..prefill import prefill
from ..spec import RidgeSpec

if TYPE_CHECKING:
    from .graft import GraftLearner
    from .learner import ReportPhase

__all__ = ["fit_ridge", "solve_ridge"]

TEXTS_AT_ONCE = 8
ROWS_AT_ONCE = 4096  # converted to float32 at a time; the rest stays in the caches' dtypes
_SMALLEST = 1e-3


def fit_ridge(
    learner: "GraftLearner",
    network: TranslatorNetwork,
    receiver: End,
    examples: Sequence[GraftExample],
    spec: RidgeSpec,
    seed: int,
    report: "ReportPhase",
) -> None:
    """Fit the network's linear part. Raises InputError if there is too little text."""
    x, y = _collect(learner, receiver, examples, spec, seed, report)
    rank = network.down.out_features
    if len(x) <= rank:
        raise InputError(
            f"the ridge start has {len(x)} tokens of text for a bottleneck of {rank}; give more texts, a smaller rank, "
            "or no ridge"
        )
    report("ridge: solving", 0, 1)
    mean, deviation, offset, scale = _moments(x, y, receiver.engine.model.info.shapes)
    gram, cross = torch.zeros(x.shape[1], x.shape[1]), torch.zeros(x.shape[1], y.shape[1])
    for part, goal in zip(_parts(x), _parts(y), strict=True):
        features = (part.float() - mean) / deviation
        gram += _product(features, features)
        cross += _product(features, (goal.float() - offset) / scale)
    weights, factor = solve_ridge(gram, cross, spec.penalty, len(x))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, _, directions = torch.svd_lowrank(factor.T @ weights, q=rank, niter=2)  # (targets, rank)
    down = weights @ directions
    some = (x[:: max(len(x) // ROWS_AT_ONCE, 1)].float() - mean) / deviation
    spread = (some @ down).std(0).clamp_min(_SMALLEST)
    with torch.no_grad():
        for buffer, value in ((network.mean, mean), (network.deviation, deviation), (network.scale, scale)):
            buffer.copy_(value)
        network.down.weight.copy_((down / spread).T)
        network.down.bias.zero_()
        network.up.weight.copy_(directions * spread)
        network.up.bias.copy_(offset / scale)
        if hasattr(network, "gate"):
            network.gate.fill_(1.0)
            network.contract.weight.zero_()
            network.contract.bias.zero_()
    report("ridge: solving", 1, 1)


def solve_ridge(gram: Tensor, cross: Tensor, penalty: float, tokens: int) -> tuple[Tensor, Tensor]:
    """(features, targets) weights, and the Cholesky factor of the penalised Gram matrix. Overwrites `gram`.

    Raises InputError if the penalty is too small for the matrix.
    """
    gram.diagonal().add_(penalty * tokens)
    try:
        factor = torch.linalg.cholesky(gram)
    except RuntimeError as error:
        raise InputError(f"the ridge start can't be solved with a penalty of {penalty}; raise it") from error
    return torch.cholesky_solve(cross, factor), factor


def _collect(
    learner: "GraftLearner",
    receiver: End,
    examples: Sequence[GraftExample],
    spec: RidgeSpec,
    seed: int,
    report: "ReportPhase",
) -> tuple[Tensor, Tensor]:
    """(tokens, features) and (tokens, targets) of texts drawn without repetition, in the caches' dtypes."""
    by_text = {example.text: example.before for example in examples}
    texts = list(by_text)
    Random(seed).shuffle(texts)  # noqa: S311
    xs, ys, tokens = [], [], 0
    for chunk in _chunks(texts):
        features = learner.features(chunk)
        befores = learner.before([by_text[text] for text in chunk])
        for text, x, past in zip(chunk, features, befores, strict=True):
            for ids, pairs in text_pairs(text, receiver):
                if not pairs:
                    continue
                (kv,) = prefill(receiver.engine.model, [ids], [past])
                still = receiver.engine.model.rotation.unrotated(kv)
                sharer_rows, receiver_rows = (torch.tensor(side) for side in zip(*pairs, strict=True))
                targets = torch.cat([_rows(tensor) for layer in still.layers for tensor in layer], dim=-1)
                xs.append(x[sharer_rows.to(x.device)].cpu())
                ys.append(targets[receiver_rows.to(targets.device)].cpu())
                tokens += len(sharer_rows)
        report("ridge: reading", min(tokens, spec.tokens), spec.tokens)
        if tokens >= spec.tokens:
            break
    if not xs:
        raise InputError("the texts of the two models have no token in common, so there is no ridge start")
    return _joined(xs), _joined(ys)


def _joined(parts: list[Tensor]) -> Tensor:
    """All rows as one tensor. Empties `parts` while it copies, so that memory does not double."""
    joined = parts[0].new_empty(sum(map(len, parts)), parts[0].shape[1])
    end = len(joined)
    while parts:
        part = parts.pop()
        joined[end - len(part) : end] = part
        end -= len(part)
    return joined


def _chunks(texts: Sequence[PrivateText]) -> Iterator[Sequence[PrivateText]]:
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        yield texts[start : start + TEXTS_AT_ONCE]


def _moments(x: Tensor, y: Tensor, shapes: Sequence[KVShape]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(features,) mean and deviation; (targets,) mean, and deviation shared by a layer's keys or values."""
    mean, offset = _sum(x) / len(x), _sum(y) / len(y)
    spread, height = _sum(x, mean) / (len(x) - 1), _sum(y, offset) / len(y)
    deviation = spread.sqrt().clamp_min(_SMALLEST)
    widths = [width for shape in shapes for width in (shape.key_width, shape.value_width)]
    by_block = torch.stack([block.mean() for block in torch.split(height, widths)]).sqrt().clamp_min(_SMALLEST)
    return mean, deviation, offset, by_block.repeat_interleave(torch.tensor(widths))


def _parts(x: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(x), ROWS_AT_ONCE):
        yield x[start : start + ROWS_AT_ONCE]


def _sum(x: Tensor, middle: Tensor | None = None) -> Tensor:
    """(columns,) float32 sum of all rows, or of their squared distances to `middle`."""
    total = torch.zeros(x.shape[1])
    for part in _parts(x):
        total += part.float().sum(0) if middle is None else (part.float() - middle).square().sum(0)
    return total


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a' b, with factors rounded to 16 bits and float32 sums on CPUs with such instructions: several times faster.

    A Gram matrix stays positive definite, since only its factors are rounded."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return a.T @ b
    finally:
        torch.set_float32_matmul_precision(before)


def _rows(x: Tensor) -> Tensor:
    """(1, kv_heads, positions, head_dim) to (positions, kv_heads * head_dim)."""
    return x[0].transpose(0, 1).flatten(1)
