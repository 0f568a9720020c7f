"""The closed-form start: against the normal equations, solved the long way on the same rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from cachegraph.channels.fusers.networks.translator import TranslatorNetwork, TranslatorParams
from cachegraph.errors import InputError
from cachegraph.training.networks.graft import GraftLearner
from cachegraph.training.networks.ridge import _collect, fit_ridge
from cachegraph.training.spec import RidgeSpec
from cachegraph.training.train import OpenedTraining

from .conftest import Task, write_task

FULL = 96  # keys and values of 3 layers of 2 heads of 8: the receiver's, so no map needs a higher rank
SPEC = RidgeSpec(tokens=100_000, penalty=0.01)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, tiny_folders: dict[str, Path]) -> Task:
    return write_task(tmp_path_factory.mktemp("ridge"), tiny_folders, "graft", sharer="twin")


@pytest.fixture(scope="module")
def found(task: Task) -> Iterator[OpenedTraining]:
    with task.open_training() as open_training:
        yield open_training


def rows(found: OpenedTraining, spec: RidgeSpec = SPEC, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, y = _collect(learner(found), found.pair.receiver, found.train, spec, seed, lambda *_: None)
    return x.double(), y.double()


def learner(found: OpenedTraining) -> GraftLearner:
    return cast("GraftLearner", found.learner)


def network(found: OpenedTraining, rank: int, hidden: int = 3) -> TranslatorNetwork:
    params = TranslatorParams(rank=rank, hidden=hidden)
    return TranslatorNetwork(params, learner(found)._translator.card)


def fitted(found: OpenedTraining, rank: int, spec: RidgeSpec = SPEC, **more: Any) -> TranslatorNetwork:
    made = network(found, rank, **more)
    fit_ridge(learner(found), made, found.pair.receiver, found.train, spec, 0, lambda *_: None)
    return made.eval()


def direct(found: OpenedTraining, penalty: float = 0.01) -> tuple[Tensor, Tensor]:
    """Fitted values and standardised features' weights of a ridge regression in float64, in the targets' own units."""
    x, y = rows(found)
    features = (x - x.mean(0)) / x.std(0).clamp_min(1e-3)
    gram = features.T @ features + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, features.T @ (y - y.mean(0)))
    return y.mean(0) + features @ weights, weights


def outputs(made: TranslatorNetwork, found: OpenedTraining) -> Tensor:
    with torch.no_grad():
        return cast("Tensor", made(rows(found)[0].float())).double()


@pytest.fixture(autouse=True)
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of products rounded to 16 bits would hide a wrong formula behind their noise."""
    monkeypatch.setattr("cachegraph.training.networks.ridge._product", lambda a, b: a.T @ b)


def test_full_rank_is_ridge_regression(found: OpenedTraining) -> None:
    expected, _ = direct(found)
    torch.testing.assert_close(outputs(fitted(found, FULL), found), expected, rtol=1e-3, atol=2e-3)
    assert expected.std() > 0.1


def loss(found: OpenedTraining, made: Tensor) -> float:
    """What a ridge of lower rank minimises, but for the penalty: squared errors with every block's variance 1."""
    _, y = rows(found)
    blocks = (y - y.mean(0)).view(len(y), 6, -1).square().mean((0, 2)).sqrt().repeat_interleave(y.shape[1] // 6)
    return float((((made - y) / blocks) ** 2).mean())


def penalised(found: OpenedTraining, down: Tensor, scale: Tensor) -> float:
    """The whole of it, for standardised weights (features, targets) in the targets' own units."""
    x, y = rows(found)
    features = (x - x.mean(0)) / x.std(0).clamp_min(1e-3)
    errors = ((y - y.mean(0)) - features @ down) / scale
    return float(errors.square().sum() + SPEC.penalty * len(x) * (down / scale).square().sum())


def map_of(made: TranslatorNetwork) -> tuple[Tensor, Tensor]:
    """The network's linear map on standardised features, (features, targets), and the targets' scale."""
    scale = made.scale.double()
    weights = (made.up.weight.double() @ made.down.weight.double()).T * scale
    return weights.detach(), scale


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_a_lower_rank_is_the_best_map_of_that_rank(
    found: OpenedTraining, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Eckart and Young in the metric of the penalised problem, and better than other projections of full ridge."""
    weights, scale = map_of(fitted(found, rank))
    assert int(torch.linalg.matrix_rank(weights, rtol=1e-5)) == rank
    mine = penalised(found, weights, scale)
    _, full = direct(found)
    x, _ = rows(found)
    features = (x - x.mean(0)) / x.std(0).clamp_min(1e-3)
    gram = features.T @ features + SPEC.penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    metric = torch.linalg.cholesky(gram)
    u, s, v = torch.linalg.svd(metric.T @ (full / scale), full_matrices=False)
    best = torch.linalg.solve_triangular(metric.T, (u[:, :rank] * s[:rank]) @ v[:rank], upper=True) * scale
    least = penalised(found, best, scale)
    assert least * (1 - 1e-4) < mine < 1.01 * least  # the directions are those of a randomised SVD
    monkeypatch.setattr(torch, "svd_lowrank", lambda a, q, niter: _cut(torch.linalg.svd(a, full_matrices=False), q))
    assert penalised(found, map_of(fitted(found, rank))[0], scale) == pytest.approx(least, rel=1e-4)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(5):
        basis = torch.linalg.qr(torch.randn(len(scale), rank, generator=generator, dtype=x.dtype)).Q
        assert mine < penalised(found, (full / scale) @ basis @ basis.T * scale, scale)


def _cut(whole: tuple[Tensor, Tensor, Tensor], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    u, s, v = whole
    return u[:, :rank], s[:rank], v[:rank].T


def test_the_error_falls_with_the_rank(found: OpenedTraining) -> None:
    errors = [loss(found, outputs(fitted(found, rank), found)) for rank in (1, 4, 16, 48, FULL)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0] < 0.5


def test_the_correction_behind_the_map_starts_at_nothing_and_can_learn(found: OpenedTraining) -> None:
    made, plain = fitted(found, 8), fitted(found, 8, hidden=0)
    assert torch.equal(outputs(made, found), outputs(plain, found))
    made.train()(rows(found)[0].float()).square().sum().backward()
    assert float(made.contract.weight.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_what_goes_through_the_bottleneck_has_variance_one(found: OpenedTraining) -> None:
    made = fitted(found, 8)
    with torch.no_grad():
        z = made.down((rows(found)[0].float() - made.mean) / made.deviation)
    torch.testing.assert_close(z.std(0), torch.ones(8), rtol=1e-3, atol=1e-3)


def test_it_reads_no_more_text_than_it_is_told_to(found: OpenedTraining) -> None:
    told: list[tuple[int, int]] = []
    spec = RidgeSpec(tokens=30)
    x, _ = _collect(
        learner(found), found.pair.receiver, found.train, spec, 0, lambda _, done, total: told.append((done, total))
    )
    assert 30 <= len(x) < len(rows(found)[0])
    assert told == [(30, 30)]


def test_the_rows_are_another_draw_with_another_seed(found: OpenedTraining) -> None:
    spec = RidgeSpec(tokens=30)
    assert not torch.equal(rows(found, spec)[0][:20], rows(found, spec, seed=1)[0][:20])
    assert torch.equal(rows(found, spec)[0], rows(found, spec)[0])


def test_too_little_text_is_refused(found: OpenedTraining) -> None:
    count = len(rows(found)[0])
    with pytest.raises(InputError, match=rf"has {count} tokens of text for a bottleneck of {count}; give more texts"):
        fitted(found, count)
