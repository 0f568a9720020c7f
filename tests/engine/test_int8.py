"""Weights rounded to eight bits: what a layer computes, and where such a model may be used."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from cachegraph.channels.cache.graft import why_no_graft
from cachegraph.engine.kv.cache import RowCache
from cachegraph.engine.model import int8
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.int8 import Int8Linear, quantise
from cachegraph.engine.model.load import load_model
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import ModelError


def layer(dtype: torch.dtype, bias: bool = False) -> tuple[Int8Linear, nn.Linear]:
    """A layer in eight bits, and a plain one in float32 with the same rounded weights."""
    torch.manual_seed(0)
    made = nn.Linear(64, 48, bias=bias, dtype=dtype).requires_grad_(False)
    quantise(made, "a layer")
    assert isinstance(made, Int8Linear)
    plain = nn.Linear(64, 48, bias=bias).requires_grad_(False)
    plain.weight.data = made.weight.float() * made.scale[:, None]
    if bias:
        plain.bias.data = made.bias.float()
    return made, plain


@pytest.fixture(params=[2**23, 64 * 7], ids=["one piece", "several pieces"], autouse=True)
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_AT_ONCE", request.param)


def test_each_weight_moves_by_no_more_than_half_a_step_of_its_output() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 48)
    before = plain.weight.detach().clone()
    before[3] = 0  # an output of zeros stays one
    plain.weight.data = before.clone()
    quantise(plain, "a layer")
    assert isinstance(plain, Int8Linear)
    assert plain.weight.dtype == torch.int8
    after = plain.weight.float() * plain.scale[:, None]
    half = before.abs().amax(dim=1, keepdim=True) / 127 / 2
    assert ((after - before).abs() <= half * 1.001).all()
    assert (after[3] == 0).all()


@pytest.mark.parametrize("bias", [False, True])
def test_results_are_those_of_the_rounded_weights(bias: bool) -> None:
    x = torch.randn(2, 9, 64)
    made, plain = layer(torch.float32, bias)
    torch.testing.assert_close(made(x), plain(x), rtol=1e-5, atol=1e-5)
    made, plain = layer(torch.bfloat16, bias)
    got = made(x.bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), plain(x.bfloat16().float()), rtol=2e-2, atol=2e-2)


def test_sums_of_large_numbers_stay_within_float16() -> None:
    made, plain = layer(torch.float16)
    x = torch.full((1, 64), 100.0)  # the integers' sums would be near 100 * 64 * 127
    plain.weight.data = plain.weight.abs()
    made.weight.data = made.weight.abs()
    torch.testing.assert_close(made(x.half()).float(), plain(x), rtol=1e-2, atol=1e-2)


def test_the_gradient_of_the_input_is_that_of_a_plain_layer() -> None:
    made, plain = layer(torch.float32)
    x = torch.randn(5, 64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    made(ours).square().sum().backward()
    plain(theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@torch.no_grad()
def test_a_models_linear_layers_shrink_and_its_embedding_stays(tmp_path: Path) -> None:
    folder = tiny.save_model(tiny.config_of("llama"), tmp_path)
    plain, rounded = load_model(folder), load_model(folder, weights="int8")
    linears = [module for module in rounded.network.modules() if isinstance(module, nn.Linear)]
    assert linears
    assert all(isinstance(module, Int8Linear) for module in linears)
    assert torch.equal(rounded.network.get_input_embeddings().weight, plain.network.get_input_embeddings().weight)
    assert rounded.why_no_cache is None
    assert rounded.dtype == torch.float32
    (expected,), (got,) = (
        forward(model.network, model.info, [Row([3, 1, 4, 1, 5], RowCache(), "all")]) for model in (plain, rounded)
    )
    assert expected is not None
    assert got is not None
    assert nn.functional.cosine_similarity(got.flatten(), expected.flatten(), dim=0) > 0.99
    assert not torch.equal(got, expected)


def test_what_can_not_be_rounded_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no linear layers"):
        quantise(nn.Embedding(4, 4), "a model")
    made, _ = layer(torch.float32)
    with pytest.raises(ModelError, match="no linear layers"):  # nothing is left to be rounded
        quantise(made, "a model")
    with pytest.raises(ValueError, match="leave out weights or device_map"):
        ModelSpec(source="here", weights="int8", device_map="auto")
    with pytest.raises(ValueError, match="int8"):
        ModelSpec.model_validate({"source": "here", "weights": "int4"})


def test_caches_of_plain_and_rounded_weights_are_not_passed_off_as_each_other(tmp_path: Any) -> None:
    folder = tiny.save_model(tiny.config_of("llama"), tmp_path)
    plain, rounded = load_model(folder), load_model(folder, weights="int8")
    assert why_no_graft(rounded, rounded) is None
    assert "int8 weights here and plain there" in (why_no_graft(rounded, plain) or "")
